//! Whether counts look like equal shares.

/// The standard normal quantile of 1 - 1e-6.
const ONE_IN_A_MILLION: f64 = 4.753_424;

/// Whether the counts may come from equal shares: false where Pearson's chi-squared statistic is so
/// large that equal shares reach it less than once in a million times. Each count should be expected
/// to be 5 or more.
pub fn is_even(counts: impl IntoIterator<Item = u32, IntoIter: Clone>) -> bool {
    let counts = counts.into_iter().map(f64::from);
    let (cells, total) = counts
        .clone()
        .fold((0.0, 0.0), |(n, sum), x| (n + 1.0, sum + x));
    if cells < 2.0 {
        return true;
    }
    let expected = total / cells;
    let statistic: f64 = counts.map(|x| (x - expected).powi(2) / expected).sum();
    quantile(statistic, cells - 1.0) < ONE_IN_A_MILLION
}

/// The normal quantile of a chi-squared statistic, after Wilson and Hilferty (1931).
fn quantile(statistic: f64, freedom: f64) -> f64 {
    let variance = 2.0 / (9.0 * freedom);
    ((statistic / freedom).cbrt() - (1.0 - variance)) / variance.sqrt()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn even_counts_are_even() {
        assert!(is_even([2500, 2500, 2500, 2500]));
        assert!(is_even([2590, 2410, 2533, 2467]));
        assert!(is_even([7]));
    }

    #[test]
    fn a_skewed_share_is_found() {
        assert!(!is_even([2800, 2400, 2400, 2400]));
        assert!(!is_even([0, 100, 100]));
    }

    #[test]
    fn quantiles_are_those_of_the_tables() {
        // Chi-squared values that are exceeded with probability 0.001.
        for (freedom, statistic) in [(1.0, 10.828), (3.0, 16.266), (9.0, 27.877)] {
            assert!(
                (quantile(statistic, freedom) - 3.09).abs() < 0.05,
                "{freedom}"
            );
        }
    }
}
