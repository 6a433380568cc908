//! Policies, compiled and asked as the packet path asks, held against the API's documentation.

mod generate;
mod properties;
mod rows;
mod tables;
