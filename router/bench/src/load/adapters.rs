//! Which adapter each request takes.

use std::str::FromStr;

use anyhow::Context;
use rand::{Rng, RngExt};

#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Mix {
    /// In turn.
    Distinct,
    /// The first of them.
    Identical,
    Uniform,
    /// The k-th with a weight of 1 / k^s.
    Zipf(f64),
}

impl FromStr for Mix {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        match (text, text.strip_prefix("zipf:")) {
            ("distinct", _) => Ok(Self::Distinct),
            ("identical", _) => Ok(Self::Identical),
            ("uniform", _) => Ok(Self::Uniform),
            (_, Some(exponent)) => match exponent.parse() {
                Ok(exponent) if (0.0..=10.0).contains(&exponent) => Ok(Self::Zipf(exponent)),
                _ => Err("the exponent of `zipf` must be from 0 to 10".to_owned()),
            },
            _ => Err("expected `distinct`, `identical`, `uniform` or `zipf:S`".to_owned()),
        }
    }
}

/// The adapters of a load and the law by which requests take them.
#[derive(Clone, Debug)]
pub(super) struct Adapters {
    pub(super) names: Vec<String>,
    mix: Mix,
    /// Sums of the weights up to and with each adapter.
    cumulative: Vec<f64>,
}

impl Adapters {
    pub(super) fn new(patterns: &[String], mix: Mix) -> anyhow::Result<Self> {
        let mut names = Vec::new();
        for pattern in patterns {
            expand(pattern, &mut names)?;
        }
        let exponent = if let Mix::Zipf(exponent) = mix { exponent } else { 0.0 };
        let mut sum = 0.0;
        let cumulative = (1..=names.len())
            .map(|rank| {
                sum += (rank as f64).powf(-exponent);
                sum
            })
            .collect();
        Ok(Self { names, mix, cumulative })
    }

    /// Index and name of the adapter for request `number`; `None` is the base model.
    pub(super) fn pick(&self, number: usize, random: &mut impl Rng) -> Option<(usize, &str)> {
        let total = *self.cumulative.last()?;
        let index = match self.mix {
            Mix::Distinct => number % self.names.len(),
            Mix::Identical => 0,
            Mix::Uniform | Mix::Zipf(_) => {
                let point = random.random::<f64>() * total;
                self.cumulative.partition_point(|sum| *sum <= point).min(self.names.len() - 1)
            }
        };
        self.names.get(index).map(|name| (index, name.as_str()))
    }
}

/// `a-{0..2}` is `a-0`, `a-1` and `a-2`; `a-{00..02}` is `a-00` and so on, as in a shell.
fn expand(pattern: &str, names: &mut Vec<String>) -> anyhow::Result<()> {
    let Some((prefix, rest)) = pattern.split_once('{') else {
        names.push(pattern.to_owned());
        return Ok(());
    };
    let bounds = rest.split_once('}').and_then(|(range, suffix)| {
        let (first, last) = range.split_once("..")?;
        let width = if first.starts_with('0') { first.len() } else { 0 };
        Some((first.parse::<u32>().ok()?, last.parse::<u32>().ok()?, width, suffix))
    });
    let (first, last, width, suffix) =
        bounds.with_context(|| format!("`{pattern}`: expected a range such as {{0..7}}"))?;
    names.extend((first..=last).map(|number| format!("{prefix}{number:0width$}{suffix}")));
    Ok(())
}

#[cfg(test)]
mod tests {
    use rand::{SeedableRng, rngs::SmallRng};

    use super::*;

    fn adapters(patterns: &[&str], mix: Mix) -> Adapters {
        Adapters::new(&patterns.iter().map(|p| (*p).to_owned()).collect::<Vec<_>>(), mix).unwrap()
    }

    #[test]
    fn ranges_expand() {
        assert_eq!(adapters(&["x", "a-{0..2}/v1"], Mix::Uniform).names, ["x", "a-0/v1", "a-1/v1", "a-2/v1"]);
        assert_eq!(adapters(&["b{098..100}"], Mix::Uniform).names, ["b098", "b099", "b100"]);
        assert!(Adapters::new(&["a{1-2}".to_owned()], Mix::Uniform).is_err());
    }

    #[test]
    fn mixes_follow_their_law() {
        let mut random = SmallRng::seed_from_u64(1);
        let mut counts = |mix| {
            let adapters = adapters(&["a-{0..3}"], mix);
            let mut counts = [0; 4];
            for number in 0..10_000 {
                counts[adapters.pick(number, &mut random).unwrap().0] += 1;
            }
            counts
        };
        assert_eq!(counts(Mix::Distinct), [2500; 4]);
        assert_eq!(counts(Mix::Identical), [10_000, 0, 0, 0]);
        assert!(counts(Mix::Uniform).iter().all(|count| (2300..2700).contains(count)));
        // 1, 1/2, 1/3, 1/4 of 25/12
        let zipf = counts(Mix::Zipf(1.0));
        assert!((4600..5000).contains(&zipf[0]) && (1050..1350).contains(&zipf[3]), "{zipf:?}");
        assert_eq!(adapters(&[], Mix::Uniform).pick(0, &mut random), None);
    }

    #[test]
    fn mixes_are_spelled() {
        assert_eq!("zipf:1.1".parse(), Ok(Mix::Zipf(1.1)));
        assert!("zipf:x".parse::<Mix>().is_err() && "zipf".parse::<Mix>().is_err());
    }
}
