//! Section `spares`: children that are started ahead for users who are not known yet.

use super::validate::{bounded, invalid};
use super::{Config, ConfigError};

section! {
    /// Children started ahead for users who are not known yet. Each uses the memory of an idle child, and is the first to
    /// go when a start waits or memory is scarce.
    #[derive(Debug)]
    pub struct Spares {
        /// Spares that are kept ready. Default 0: none is started.
        pub min: usize = 0,
        /// Maximum number of spares: they follow the new users of the last minute. Default `min`.
        pub max: Option<usize> = None,
    }
}

/// More would start for longer than a minute, which is what they follow.
const MOST: usize = 256;

impl Spares {
    /// The maximum that is in force.
    pub(crate) fn most(&self) -> usize {
        self.max.unwrap_or(self.min)
    }
}

pub(super) fn validate(config: &Config) -> Result<(), ConfigError> {
    let spares = &config.spares;
    bounded("spares.min", spares.min, 0, MOST)?;
    if let Some(max) = spares.max {
        bounded("spares.max", max, spares.min, MOST)?;
    }
    if spares.most() > 0 && spares.min == 0 {
        return Err(invalid(
            "spares.max",
            "has no effect while spares.min is 0; set spares.min to at least 1",
        ));
    }
    if spares.most() >= config.limits.max_children {
        let problem = "the spares must be fewer than limits.max_children: sessions need room too";
        return Err(invalid("spares.min, spares.max", problem));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn spares_out_of_bounds_are_refused() {
        let checked = |min: usize, max: Option<usize>, children: usize| {
            let mut config = Config::new("/nowhere");
            (config.spares, config.limits.max_children) = (Spares { min, max }, children);
            config.validate().map_err(|error| error.to_string())
        };
        for (min, max, children) in [(0, None, 1), (2, None, 3), (2, Some(4), 5)] {
            assert_eq!(checked(min, max, children), Ok(()), "{min} {max:?} {children}");
        }
        for (min, max, children, named) in [
            (MOST + 1, None, 1000, "spares.min"),
            (2, Some(1), 9, "spares.max"),
            (0, Some(1), 9, "spares.max"),
            (2, Some(4), 4, "limits.max_children"),
        ] {
            let error = checked(min, max, children).unwrap_err();
            assert!(error.contains(named), "{error}");
        }
    }
}
