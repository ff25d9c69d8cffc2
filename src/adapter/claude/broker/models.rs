//! Which models the requests of a child may name.

use std::collections::BTreeSet;
use std::ffi::OsString;
use std::fmt;

use serde::de::{DeserializeSeed, Deserializer, IgnoredAny, MapAccess, SeqAccess, Visitor};

use crate::adapter::broker::ModelNotAllowed;
use crate::model::is_model_name;

/// Aliases of the CLI, and the families that they stand for. The CLI sends ids, which contain the name of the family.
const ALIASES: [(&str, &[&str]); 5] = [
    ("haiku", &["haiku"]),
    ("sonnet", &["sonnet"]),
    ("opus", &["opus"]),
    ("fable", &["fable"]),
    ("opusplan", &["opus", "sonnet"]),
];
/// Variables by which the operator gives an alias another meaning.
const MEANINGS: [(&str, &str); 4] = [
    ("haiku", "ANTHROPIC_DEFAULT_HAIKU_MODEL"),
    ("sonnet", "ANTHROPIC_DEFAULT_SONNET_MODEL"),
    ("opus", "ANTHROPIC_DEFAULT_OPUS_MODEL"),
    ("fable", "ANTHROPIC_DEFAULT_FABLE_MODEL"),
];
/// Variables that name the model of the CLI's own small requests.
const SMALL: [&str; 2] = ["ANTHROPIC_SMALL_FAST_MODEL", "ANTHROPIC_DEFAULT_HAIKU_MODEL"];
/// Ends a name for the CLI alone: the window. The API gets it as a header.
const WINDOW: &str = "[1m]";
/// Fields in which the API takes no model: content, and schemas with any names.
const NO_MODELS: [&str; 4] = ["messages", "system", "input_schema", "metadata"];

/// The models of a list of names, as the CLI requests them.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct ModelList {
    /// As the operator wrote them.
    names: Vec<String>,
    ids: BTreeSet<String>,
    families: BTreeSet<&'static str>,
}

impl ModelList {
    /// `variables`: the environment of the child, which is the operator's.
    pub(crate) fn new(names: &BTreeSet<String>, variables: &[(OsString, OsString)]) -> Self {
        let configured = |variable: &str| {
            let found = variables.iter().rev().find(|(name, _)| name == variable);
            found.and_then(|(_, value)| value.to_str()).filter(|value| !value.is_empty())
        };
        let mut list = Self { names: names.iter().cloned().collect(), ..Self::default() };
        for name in names {
            list.add(name);
            for (alias, variable) in MEANINGS {
                if families(plain(name)).is_some_and(|families| families.contains(&alias)) {
                    list.ids.extend(configured(variable).map(|id| plain(id).to_owned()));
                }
            }
        }
        SMALL.into_iter().filter_map(configured).for_each(|small| list.add(small));
        list
    }

    fn add(&mut self, name: &str) {
        match families(plain(name)) {
            Some(families) => self.families.extend(families),
            None => drop(self.ids.insert(plain(name).to_owned())),
        }
    }

    /// Checks every model that the body of a request names.
    ///
    /// # Errors
    /// One is not listed, or the body cannot be read.
    pub(crate) fn check(&self, body: &[u8]) -> Result<(), ModelNotAllowed> {
        let unreadable = || ModelNotAllowed { named: None, allowed: self.names.join(", ") };
        let mut found = Found::default();
        let mut json = serde_json::Deserializer::from_slice(body);
        let read = Look { found: &mut found, depth: 0, is_model: false }
            .deserialize(&mut json)
            .and_then(|()| json.end());
        if read.is_err() || !found.is_named {
            return Err(unreadable());
        }
        match found.models.into_iter().find(|model| !self.admits(model)) {
            None => Ok(()),
            // Anything else could be of any length.
            Some(other) => {
                Err(ModelNotAllowed { named: Some(other).filter(|it| is_model_name(it)), ..unreadable() })
            }
        }
    }

    fn admits(&self, model: &str) -> bool {
        self.ids.contains(model)
            || undated(model).is_some_and(|model| self.ids.contains(model))
            || family(model).is_some_and(|family| self.families.contains(family))
    }
}

fn plain(name: &str) -> &str {
    name.strip_suffix(WINDOW).unwrap_or(name)
}

fn families(alias: &str) -> Option<&'static [&'static str]> {
    ALIASES.into_iter().find(|(name, _)| *name == alias).map(|(_, families)| families)
}

/// The family of an id, if it names exactly one.
fn family(model: &str) -> Option<&'static str> {
    let words = || model.split(|letter: char| !letter.is_ascii_alphanumeric());
    let mut named =
        MEANINGS.into_iter().map(|(family, _)| family).filter(|family| words().any(|word| word == *family));
    named.next().filter(|_| named.next().is_none())
}

/// An id without the date of its release.
fn undated(model: &str) -> Option<&str> {
    let (name, date) = model.rsplit_once('-')?;
    (date.len() == 8 && date.bytes().all(|byte| byte.is_ascii_digit())).then_some(name)
}

#[derive(Default)]
struct Found {
    models: Vec<String>,
    /// The request itself names one.
    is_named: bool,
}

/// Looks for texts under the name `model`: of the request, its fallbacks and its tools.
struct Look<'a> {
    found: &'a mut Found,
    depth: u8,
    is_model: bool,
}

impl Look<'_> {
    fn below(&mut self, is_model: bool) -> Look<'_> {
        Look { found: self.found, depth: self.depth.saturating_add(1), is_model }
    }
}

impl<'de> DeserializeSeed<'de> for Look<'_> {
    type Value = ();

    fn deserialize<D: Deserializer<'de>>(self, json: D) -> Result<(), D::Error> {
        json.deserialize_any(self)
    }
}

impl<'de> Visitor<'de> for Look<'_> {
    type Value = ();

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("JSON")
    }

    fn visit_str<E>(self, text: &str) -> Result<(), E> {
        if self.is_model {
            self.found.models.push(text.to_owned());
            self.found.is_named |= self.depth == 1;
        }
        Ok(())
    }

    fn visit_map<A: MapAccess<'de>>(mut self, mut map: A) -> Result<(), A::Error> {
        while let Some(name) = map.next_key::<String>()? {
            if NO_MODELS.contains(&name.as_str()) {
                map.next_value::<IgnoredAny>()?;
            } else {
                // Some parsers of gateways ignore case.
                map.next_value_seed(self.below(name.eq_ignore_ascii_case("model")))?;
            }
        }
        Ok(())
    }

    fn visit_seq<A: SeqAccess<'de>>(mut self, mut list: A) -> Result<(), A::Error> {
        let is_model = self.is_model;
        while list.next_element_seed(self.below(is_model))?.is_some() {}
        Ok(())
    }

    fn visit_unit<E>(self) -> Result<(), E> {
        Ok(())
    }

    fn visit_bool<E>(self, _: bool) -> Result<(), E> {
        Ok(())
    }

    fn visit_i64<E>(self, _: i64) -> Result<(), E> {
        Ok(())
    }

    fn visit_u64<E>(self, _: u64) -> Result<(), E> {
        Ok(())
    }

    fn visit_f64<E>(self, _: f64) -> Result<(), E> {
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn list(names: &[&str], variables: &[(&str, &str)]) -> ModelList {
        let names = names.iter().map(|name| (*name).to_owned()).collect();
        let variables: Vec<_> =
            variables.iter().map(|(name, value)| ((*name).into(), (*value).into())).collect();
        ModelList::new(&names, &variables)
    }

    fn is_allowed(list: &ModelList, model: &str) -> bool {
        list.check(serde_json::json!({ "model": model }).to_string().as_bytes()).is_ok()
    }

    #[test]
    fn alias_stands_for_its_family() {
        let sonnet = list(&["sonnet[1m]"], &[]);
        for model in ["claude-sonnet-4-5", "claude-3-7-sonnet-20250219", "us.anthropic.claude-sonnet-5-v1:0"]
        {
            assert!(is_allowed(&sonnet, model), "{model}");
        }
        for model in ["claude-opus-4-5", "claude-haiku-4-5", "sonnetx", "sonnet-opus", "", "claude"] {
            assert!(!is_allowed(&sonnet, model), "{model}");
        }
        let planning = list(&["opusplan"], &[]);
        assert!(is_allowed(&planning, "claude-opus-4-5") && is_allowed(&planning, "claude-sonnet-4-5"));
        assert!(!is_allowed(&planning, "claude-haiku-4-5"));
    }

    #[test]
    fn id_stands_for_itself_and_its_dates() {
        let one = list(&["claude-sonnet-4-5", "own-model"], &[]);
        for model in ["claude-sonnet-4-5", "claude-sonnet-4-5-20250929", "own-model"] {
            assert!(is_allowed(&one, model), "{model}");
        }
        for model in ["claude-sonnet-4", "claude-sonnet-4-5-1", "claude-sonnet-4-20250514", "own-model-2"] {
            assert!(!is_allowed(&one, model), "{model}");
        }
        assert!(!is_allowed(&list(&["claude-sonnet-4-5-20250929"], &[]), "claude-sonnet-4-5-20990101"));
        assert!(!is_allowed(&list(&[], &[]), "claude-sonnet-4-5"));
    }

    #[test]
    fn variables_of_the_operator_add_meanings() {
        let variables = [("ANTHROPIC_DEFAULT_OPUS_MODEL", "big"), ("ANTHROPIC_SMALL_FAST_MODEL", "small")];
        let opus = list(&["opus"], &variables);
        assert!(
            is_allowed(&opus, "big") && is_allowed(&opus, "small") && !is_allowed(&opus, "claude-haiku-4-5")
        );
        let sonnet = list(&["sonnet"], &variables);
        assert!(!is_allowed(&sonnet, "big") && is_allowed(&sonnet, "small"));
        let haiku = [("ANTHROPIC_DEFAULT_HAIKU_MODEL", "claude-haiku-4-5")];
        assert!(is_allowed(&list(&["opus"], &haiku), "claude-haiku-4-5-20251001"));
    }

    #[test]
    fn every_model_in_a_body_is_checked() {
        let haiku = list(&["haiku"], &[]);
        let check = |body: &str| haiku.check(body.as_bytes());
        let fine = r#"{"model":"claude-haiku-4-5","messages":[{"model":"opus"}],"max_tokens":1.5,"stream":true,"x":null,"y":-1,
            "tools":[{"name":"a","input_schema":{"properties":{"model":{"default":"opus"}}}},{"model":"claude-haiku-4-5"}]}"#;
        check(fine).unwrap();
        for other in [
            r#"{"model":"claude-opus-4-5"}"#,
            r#"{"model":"claude-haiku-4-5","model":"claude-opus-4-5"}"#,
            r#"{"model":"claude-opus-4-5","model":"claude-haiku-4-5"}"#,
            r#"{"model":"claude-haiku-4-5","\u006dodel":"claude-opus-4-5"}"#,
            r#"{"model":"claude-haiku-4-5","Model":"claude-opus-4-5"}"#,
            r#"{"model":"claude-haiku-4-5","tools":[{"type":"advisor_20260301","model":"claude-opus-4-5"}]}"#,
            r#"{"model":"claude-haiku-4-5","fallbacks":[{"model":"claude-opus-4-5"}]}"#,
            r#"{"model":"claude-haiku-4-5","new":{"model":["claude-opus-4-5"]}}"#,
        ] {
            assert_eq!(check(other).unwrap_err().named.as_deref(), Some("claude-opus-4-5"), "{other}");
        }
        let deep = format!(r#"{{"model":"claude-haiku-4-5","a":{}"#, "[".repeat(100_000));
        let utf_16: String =
            r#"{"model":"claude-haiku-4-5"}"#.chars().flat_map(|letter| [letter, '\0']).collect();
        for unreadable in [
            "",
            "{}",
            "[]",
            "null",
            r#"{"model":1}"#,
            r#"{"model":null}"#,
            r#"["model","claude-haiku-4-5"]"#,
            r#"{"tools":[{"model":"claude-haiku-4-5"}]}"#,
            r#"{"model":"claude-haiku-4-5"}{"model":"claude-opus-4-5"}"#,
            r#"{"model":"claude-haiku-4-5""#,
            &deep,
            &utf_16,
        ] {
            let refused = check(unreadable).unwrap_err();
            assert_eq!((refused.named, refused.allowed.as_str()), (None, "haiku"), "{unreadable:.60}");
        }
        // No text of a stranger without bounds.
        let odd = format!(r#"{{"model":"{}"}}"#, "a b".repeat(1000));
        assert_eq!(check(&odd).unwrap_err().named, None);
    }

    proptest! {
        #[test]
        fn any_body_is_checked_without_panic(body: Vec<u8>, text: String) {
            let list = list(&["haiku"], &[]);
            list.check(&body).ok();
            list.check(text.as_bytes()).ok();
            list.admits(&text);
        }
    }
}
