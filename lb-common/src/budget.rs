//! The budgets of refusals and of events: token buckets of a second's worth, each kept as one number.

/// Refusals a second per node, and events.
pub const RATE: u64 = 1000;

const SECOND: u64 = 1_000_000_000;
const INTERVAL: u64 = SECOND / RATE;

/// Takes a token out of the bucket. `debt` is when the bucket will be full again, `now` is now,
/// both in nanoseconds; returns the new debt, or `None` where the bucket is empty.
#[inline(always)]
pub const fn take(debt: u64, now: u64) -> Option<u64> {
    let debt = if debt > now { debt } else { now };
    if debt - now > SECOND - INTERVAL {
        None
    } else {
        Some(debt + INTERVAL)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn refused_of(asked: u64, over: u64) -> u64 {
        let start = 5 * SECOND;
        let mut debt = 0;
        let mut passed = 0;
        for n in 0..asked {
            if let Some(next) = take(debt, start + n * over / asked) {
                debt = next;
                passed += 1;
            }
        }
        passed
    }

    #[test]
    fn a_burst_is_bounded_by_the_bucket() {
        assert_eq!(refused_of(10_000, 0), RATE);
    }

    #[test]
    fn a_flood_gets_the_rate_and_the_bucket_once() {
        let refused = refused_of(100_000, 10 * SECOND);
        assert!(refused.abs_diff(11 * RATE) <= 1, "{refused}");
    }

    #[test]
    fn a_trickle_is_never_limited() {
        assert_eq!(refused_of(5_000, 10 * SECOND), 5_000);
    }
}
