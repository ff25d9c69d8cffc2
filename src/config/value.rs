//! How single values are written: durations, memory budgets, the default directory.

use std::path::PathBuf;
use std::time::Duration;

use serde::de::{Deserialize, Deserializer, Error as _, Unexpected};
use toml::Value;

/// What all children together may use.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub enum MemoryBudget {
    /// Of the memory of the container or the host, whichever is smaller.
    Percent(u8),
    /// Exactly.
    Bytes(u64),
}

impl MemoryBudget {
    /// The budget on a machine with `available` bytes in all.
    #[must_use]
    pub fn of(self, available: u64) -> u64 {
        match self {
            Self::Percent(percent) => (u128::from(available) * u128::from(percent) / 100) as u64,
            Self::Bytes(bytes) => bytes,
        }
    }

    fn parse(text: &str) -> Option<Self> {
        let text = text.trim();
        if let Some(percent) = text.strip_suffix('%') {
            let percent = percent.trim().parse().ok().filter(|percent| (1..=100).contains(percent))?;
            return Some(Self::Percent(percent));
        }
        let units = [("GiB", 30), ("MiB", 20), ("KiB", 10), ("G", 30), ("M", 20), ("K", 10), ("", 0)];
        let (number, shift) =
            units.iter().find_map(|(unit, shift)| text.strip_suffix(unit).map(|number| (number, *shift)))?;
        let number: u64 = number.trim().parse().ok().filter(|number| *number > 0)?;
        number.checked_mul(1 << shift).map(Self::Bytes)
    }
}

impl<'de> Deserialize<'de> for MemoryBudget {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let expected = "a share such as \"80%\", a size such as \"8GiB\", or a number of bytes";
        read(deserializer, expected, |value| match value {
            Value::Integer(bytes) => u64::try_from(*bytes).ok().filter(|bytes| *bytes > 0).map(Self::Bytes),
            Value::String(text) => Self::parse(text),
            _ => None,
        })
    }
}

/// Durations as seconds (`300`, `0.5`) or text (`"5m"`, `"250ms"`).
pub(super) mod duration {
    use super::*;

    pub(in crate::config) fn deserialize<'de, D: Deserializer<'de>>(
        deserializer: D,
    ) -> Result<Duration, D::Error> {
        let expected = "a duration such as \"300s\", \"5m\" or \"250ms\", or a number of seconds";
        read(deserializer, expected, |value| match value {
            Value::Integer(seconds) => u64::try_from(*seconds).ok().map(Duration::from_secs),
            Value::Float(seconds) => Duration::try_from_secs_f64(*seconds).ok(),
            Value::String(text) => humantime::parse_duration(text).ok(),
            _ => None,
        })
    }
}

/// Reads a value that may be written as a number or as text.
pub(super) fn read<'de, D: Deserializer<'de>, T>(
    deserializer: D,
    expected: &'static str,
    parse: impl FnOnce(&Value) -> Option<T>,
) -> Result<T, D::Error> {
    let value = Value::deserialize(deserializer)?;
    parse(&value).ok_or_else(|| {
        let given = match &value {
            Value::Integer(number) => Unexpected::Signed(*number),
            Value::Float(number) => Unexpected::Float(*number),
            Value::String(text) => Unexpected::Str(text),
            other => return D::Error::invalid_type(Unexpected::Other(other.type_str()), &expected),
        };
        D::Error::invalid_value(given, &expected)
    })
}

/// `$XDG_DATA_HOME/pilotlight`, else `~/.local/share/pilotlight`, else `pilotlight-data` in the working directory.
pub(super) fn default_data_dir() -> PathBuf {
    let absolute = |name| std::env::var_os(name).map(PathBuf::from).filter(|path| path.is_absolute());
    absolute("XDG_DATA_HOME")
        .or_else(|| absolute("HOME").map(|home| home.join(".local/share")))
        .map_or_else(|| PathBuf::from("pilotlight-data"), |base| base.join("pilotlight"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn budgets_are_shares_or_sizes() {
        assert_eq!(MemoryBudget::parse("80%"), Some(MemoryBudget::Percent(80)));
        assert_eq!(MemoryBudget::parse("8GiB"), Some(MemoryBudget::Bytes(8 << 30)));
        assert_eq!(MemoryBudget::parse("512M"), Some(MemoryBudget::Bytes(512 << 20)));
        assert_eq!(MemoryBudget::parse("4096"), Some(MemoryBudget::Bytes(4096)));
        for nonsense in ["0%", "101%", "-1", "much", "", "0", "99999999999999999999GiB"] {
            assert_eq!(MemoryBudget::parse(nonsense), None, "{nonsense}");
        }
        assert_eq!(MemoryBudget::Percent(80).of(1000), 800);
    }
}
