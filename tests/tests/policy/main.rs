//! Policies, compiled and asked as the packet path asks, held against the API's documentation.

mod diff;
mod generate;
mod oracle;
mod properties;
mod rows;
mod tables;
