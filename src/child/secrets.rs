//! Redaction of secrets in a child's standard error.
//!
//! A failing program often prints its arguments and environment, and clients and operators see its standard error. Secret
//! values are redacted there: as they are, in hexadecimal, in base64, with percent escapes as in URLs, and with backslash
//! escapes as in JSON.

use std::fmt;
use std::ops::Range;
use std::sync::{Arc, Mutex};

use base64::Engine as _;
use base64::engine::general_purpose::{STANDARD_NO_PAD, URL_SAFE_NO_PAD};

use serde_json::{Map, Value};

use crate::support::hex;
use crate::support::lock::MutexExt;

/// Parts of the names of secret variables. Other variables (a region, a base URL) help to find an error.
const SECRET_NAMES: [&str; 7] = ["KEY", "TOKEN", "SECRET", "PASSW", "CREDENTIAL", "AUTH", "HEADERS"];
/// Shortest redacted value: shorter ones are common words such as `true`.
const SHORTEST: usize = 6;
const BLACK: &str = "[redacted]";

/// Length from which a segment of a URL path counts as a secret: some services have keys there.
const KEY_IN_PATH: usize = 16;

/// Most secrets that a child learns while it runs; the oldest make room. Those of its start always stay.
const MOST_LEARNED: usize = 1024;
/// Most bytes of them: each is kept in several forms, ten times its size.
const MOST_LEARNED_BYTES: usize = 256 << 10;

/// The secrets of a child. Clones share what is learned later.
#[derive(Clone, Default)]
pub(crate) struct Secrets {
    of_start: Arc<[Forms]>,
    learned: Arc<Mutex<Vec<Forms>>>,
}

#[derive(Clone)]
struct Forms {
    plain: String,
    /// In lower case.
    hex: String,
    /// Part of any base64 text that contains the secret: at each of three alignments, in both alphabets.
    base64: Vec<String>,
}

impl fmt::Debug for Secrets {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Secrets({})", self.of_start.len())
    }
}

impl Secrets {
    /// Collects secrets of variables, MCP servers and credentials. Of an MCP server all variables, headers, URLs and
    /// arguments count, as they may contain keys.
    pub(crate) fn of<'a>(
        variables: impl Iterator<Item = (&'a String, &'a String)>,
        servers: &Map<String, Value>,
        tokens: &[String],
    ) -> Self {
        let is_secret = |name: &str| {
            let name = name.to_ascii_uppercase();
            SECRET_NAMES.iter().any(|part| name.contains(part))
        };
        let of_variables = variables.filter(|(name, _)| is_secret(name)).map(|(_, value)| value.clone());
        let whole = of_variables.chain(of_servers(servers)).chain(tokens.iter().cloned());
        Self { of_start: values(whole).into_iter().map(Forms::of).collect(), learned: Arc::default() }
    }

    /// These secrets and one more.
    pub(crate) fn and(&self, secret: &str) -> Self {
        let of_start = self.of_start.iter().cloned().chain([Forms::of(secret.to_owned())]).collect();
        Self { of_start, learned: Arc::clone(&self.learned) }
    }

    /// Adds the secrets of servers that a running child is given.
    pub(crate) fn learn(&self, servers: &Map<String, Value>) {
        let mut bytes = 0;
        let mut fits = |length: usize| {
            bytes += length;
            bytes <= MOST_LEARNED_BYTES
        };
        let new = values(of_servers(servers)).into_iter().take(MOST_LEARNED);
        let new: Vec<String> = new.take_while(|value| fits(value.len())).collect();
        let mut learned = self.learned.lock_unpoisoned();
        learned.retain(|known| new.binary_search(&known.plain).is_err());
        let room = MOST_LEARNED - new.len();
        let kept = learned.iter().rev().take(room).take_while(|known| fits(known.plain.len())).count();
        let excess = learned.len() - kept;
        learned.drain(..excess);
        learned.extend(new.into_iter().map(Forms::of));
    }

    pub(super) fn redact(&self, text: &str) -> String {
        let lower = text.to_ascii_lowercase();
        let decoded = [Decoded::of(text, percent), Decoded::of(text, backslash)];
        let learned = self.learned.lock_unpoisoned();
        let all = self.of_start.iter().chain(&*learned);
        let mut spans: Vec<_> = all.flat_map(|forms| forms.spans(text, &lower, &decoded)).collect();
        drop(learned);
        spans.sort_by_key(|span| span.start);
        let (mut shown, mut at) = (String::new(), 0);
        for span in spans {
            // Spans may overlap.
            if span.start >= at {
                shown.push_str(text.get(at..span.start).unwrap_or_default());
                shown.push_str(BLACK);
            }
            at = at.max(span.end);
        }
        shown + text.get(at..).unwrap_or_default()
    }
}

/// The secrets in definitions of MCP servers.
fn of_servers(servers: &Map<String, Value>) -> impl Iterator<Item = String> {
    let tables = servers.values().flat_map(|server| [server.get("env"), server.get("headers")]).flatten();
    let of_tables = tables.filter_map(Value::as_object).flat_map(|table| table.values());
    // A header may be printed without its scheme.
    let of_tables = of_tables.filter_map(Value::as_str);
    let of_tables = of_tables.flat_map(|value| [Some(value), value.strip_prefix("Bearer ")]).flatten();
    let of_tables = of_tables.map(str::to_owned);
    let in_text = |key: &'static str| servers.values().filter_map(move |server| server.get(key)?.as_str());
    let urls = in_text("url").flat_map(of_url).map(str::to_owned);
    let args = servers.values().filter_map(|server| server.get("args")?.as_array()).flatten();
    let args = args.filter_map(Value::as_str).flat_map(of_argument).map(str::to_owned);
    of_tables.chain(urls).chain(args)
}

/// The values that are long enough and their lines, each once.
fn values(whole: impl Iterator<Item = String>) -> Vec<String> {
    // A text of many lines may be printed line by line.
    let parts = whole.flat_map(|value| {
        let lines: Vec<String> = value.lines().map(str::to_owned).collect();
        std::iter::once(value).chain(lines)
    });
    let mut values: Vec<String> = parts.filter(|value| value.len() >= SHORTEST).collect();
    values.sort();
    values.dedup();
    values
}

impl Forms {
    fn of(plain: String) -> Self {
        let mut base64: Vec<String> = (0..3).flat_map(|shift| aligned(plain.as_bytes(), shift)).collect();
        base64.sort();
        base64.dedup();
        Self { hex: hex::encode(plain.as_bytes()), plain, base64 }
    }

    fn spans(&self, text: &str, lower: &str, decoded: &[Decoded]) -> Vec<Range<usize>> {
        let found = |text: &str, form: &str| -> Vec<Range<usize>> {
            text.match_indices(form).map(|(at, form)| at..at + form.len()).collect()
        };
        let base64 = self.base64.iter().flat_map(|form| found(text, form));
        let base64 = base64.map(|span| whole_word(text, span));
        let mut spans = found(text, &self.plain);
        spans.extend(found(lower, &self.hex));
        spans.extend(base64);
        spans.extend(decoded.iter().flat_map(|decoded| decoded.spans(self.plain.as_bytes())));
        spans
    }
}

/// Base64 characters that depend only on the secret, if `shift` bytes precede it.
fn aligned(secret: &[u8], shift: usize) -> [String; 2] {
    let bytes = [&[0; 2][..shift.min(2)], secret].concat();
    let begin = (shift * 8).div_ceil(6);
    let end = bytes.len() * 8 / 6;
    [STANDARD_NO_PAD.encode(&bytes), URL_SAFE_NO_PAD.encode(&bytes)]
        .map(|text| text.get(begin..end).unwrap_or_default().to_owned())
}

/// Extends a span over adjacent base64 characters: they contain bits of the secret too.
fn whole_word(text: &str, span: Range<usize>) -> Range<usize> {
    let is_inside = |byte: &u8| byte.is_ascii_alphanumeric() || b"+/-_".contains(byte);
    let bytes = text.as_bytes();
    let before = bytes.iter().take(span.start).rev().take_while(|byte| is_inside(byte)).count();
    let after = bytes.iter().skip(span.end).take_while(|byte| is_inside(byte) || **byte == b'=').count();
    span.start - before..span.end + after
}

/// Secrets of a URL: all of it, user and password, query values, fragment, long path segments.
fn of_url(url: &str) -> Vec<&str> {
    let rest = url.split_once("://").map_or(url, |(_, rest)| rest);
    let (rest, fragment) = rest.split_once('#').unwrap_or((rest, ""));
    let (rest, query) = rest.split_once('?').unwrap_or((rest, ""));
    let (authority, path) = rest.split_once('/').unwrap_or((rest, ""));
    let user = authority.rsplit_once('@').map_or("", |(user, _)| user);
    let values = query.split('&').map(|pair| pair.split_once('=').map_or(pair, |(_, value)| value));
    let segments = path.split('/').filter(|segment| segment.len() >= KEY_IN_PATH);
    [url, fragment, user].into_iter().chain(user.split(':')).chain(values).chain(segments).collect()
}

/// Secrets of an argument: its value, and all of it unless it is an option.
fn of_argument(argument: &str) -> Vec<&str> {
    let value = argument.split_once('=').map(|(_, value)| value);
    let value = value.or_else(|| {
        // `-pVALUE`
        let option = argument.strip_prefix('-').filter(|option| !option.starts_with('-'))?;
        option.get(1..)
    });
    let whole = Some(argument).filter(|argument| !argument.starts_with('-'));
    whole.into_iter().chain(value).collect()
}

/// Decoded text, with the position of each byte in the original.
struct Decoded {
    bytes: Vec<u8>,
    positions: Vec<usize>,
    length: usize,
}

/// Decoder of an escape at the beginning of a text: the bytes of its character, and its length.
type Escape = fn(&str) -> Option<(Vec<u8>, usize)>;

fn percent(text: &str) -> Option<(Vec<u8>, usize)> {
    let digits = text.strip_prefix('%')?.get(..2)?;
    let is_hex = digits.bytes().all(|digit| digit.is_ascii_hexdigit());
    let byte = u8::from_str_radix(digits, 16).ok().filter(|_| is_hex)?;
    Some((vec![byte], 3))
}

fn backslash(text: &str) -> Option<(Vec<u8>, usize)> {
    let escaped = text.strip_prefix('\\')?;
    let short = match escaped.bytes().next()? {
        b'n' => b'\n',
        b'r' => b'\r',
        b't' => b'\t',
        b'b' => 8,
        b'f' => 12,
        quoted @ (b'"' | b'\\' | b'/' | b'\'') => quoted,
        b'u' => {
            let unit = |text: &str| {
                let digits = text.strip_prefix('u')?.get(..4)?;
                digits.bytes().all(|digit| digit.is_ascii_hexdigit()).then_some(())?;
                u16::from_str_radix(digits, 16).ok()
            };
            let first = unit(escaped)?;
            let second = escaped.get(5..).and_then(|rest| unit(rest.strip_prefix('\\')?));
            let decode = |units: &[u16]| char::decode_utf16(units.iter().copied()).next()?.ok();
            let alone = decode(&[first]).map(|character| (character, 6));
            let pair = || Some((decode(&[first, second?])?, 12));
            let (character, length) = alone.or_else(pair)?;
            return Some((character.to_string().into_bytes(), length));
        }
        _ => return None,
    };
    Some((vec![short], 2))
}

impl Decoded {
    fn of(text: &str, escape: Escape) -> Self {
        let (mut bytes, mut positions, mut at) = (Vec::new(), Vec::new(), 0);
        while let Some(&byte) = text.as_bytes().get(at) {
            let (resolved, length) = text.get(at..).and_then(escape).unwrap_or_else(|| (vec![byte], 1));
            positions.extend(resolved.iter().map(|_| at));
            bytes.extend(resolved);
            at += length;
        }
        Self { bytes, positions, length: text.len() }
    }

    fn spans(&self, secret: &[u8]) -> Vec<Range<usize>> {
        let place = |at: usize| self.positions.get(at).copied().unwrap_or(self.length);
        let found = memchr::memmem::find_iter(&self.bytes, secret);
        found.map(|at| place(at)..place(at + secret.len())).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use base64::engine::general_purpose::{STANDARD, URL_SAFE};
    use proptest::prelude::*;

    fn secrets(secret: &str) -> Secrets {
        let variable = ("SOME_KEY".to_owned(), secret.to_owned());
        Secrets::of(std::iter::once((&variable.0, &variable.1)), &Map::new(), &[])
    }

    #[test]
    fn what_was_given_as_a_secret_is_blacked_out() {
        let variables = [
            ("AWS_SECRET_ACCESS_KEY", "s3cret+1"),
            ("my_api_token", "s3cret+1 and more"),
            ("AWS_REGION", "eu-west-1"),
            ("SHORT_KEY", "on"),
        ]
        .map(|(name, value)| (name.to_owned(), value.to_owned()));
        let servers = serde_json::json!({"m": {"command": "serve", "env": {"A": "in the env"}},
            "n": {"url": "http://n", "headers": {"Authorization": "Bearer of it all"}}});
        let secrets = Secrets::of(
            variables.iter().map(|(name, value)| (name, value)),
            servers.as_object().unwrap(),
            &[],
        );
        let text = secrets
            .redact("eu-west-1 on s3cret+1 s3cret+1 and more, in the env, Bearer of it all, of it all serve");
        assert_eq!(text, "eu-west-1 on [redacted] [redacted], [redacted], [redacted], [redacted] serve");
        assert!(!format!("{secrets:?}").contains("s3cret"));
    }

    #[test]
    fn learned_secrets_are_blacked_out_in_all_clones() {
        let of_start = secrets("s3cret-of-the-start");
        let clone = of_start.clone();
        let servers = |value: &str| serde_json::json!({ "m": { "env": { "TOKEN": value } } });
        clone.learn(servers("s3cret-of-later").as_object().unwrap());
        assert_eq!(
            of_start.redact("s3cret-of-the-start s3cret-of-later"),
            format!("{BLACK} {BLACK}"),
            "the child's tail has a clone of its own"
        );
        for number in 0..2 * MOST_LEARNED {
            clone.learn(servers(&format!("s3cret-{number:05}")).as_object().unwrap());
        }
        assert_eq!(clone.learned.lock().unwrap().len(), MOST_LEARNED);
        assert_eq!(clone.redact("s3cret-02047"), BLACK);
        assert_eq!(clone.redact("s3cret-00000 s3cret-of-the-start"), format!("s3cret-00000 {BLACK}"));
    }

    #[test]
    fn learned_secrets_have_a_limit_in_bytes() {
        let secrets = Secrets::default();
        for number in 0..64 {
            let value = format!("{number:04}{}", "x".repeat(16 << 10));
            let servers = serde_json::json!({ "m": { "env": { "TOKEN": value } } });
            secrets.learn(servers.as_object().unwrap());
        }
        let bytes: usize = secrets.learned.lock().unwrap().iter().map(|forms| forms.plain.len()).sum();
        assert!(bytes <= MOST_LEARNED_BYTES && bytes > MOST_LEARNED_BYTES / 2, "{bytes}");
    }

    #[test]
    fn encoded_secrets_are_blacked_out() {
        let secrets = secrets("user:s3cret/+value");
        let header = STANDARD.encode("user:s3cret/+value");
        let shown = secrets.redact(&format!("Authorization: Basic {header} refused"));
        assert_eq!(shown, "Authorization: Basic [redacted] refused");
        let shown = secrets.redact("GET /?key=user%3As3cret%2f%2Bvalue&x=1 failed");
        assert_eq!(shown, "GET /?key=[redacted]&x=1 failed");
        let shown = secrets.redact("0x757365723A7333637265742F2B76616C7565.");
        assert_eq!(shown, "0x[redacted].");
    }

    #[test]
    fn urls_and_arguments_of_servers_are_blacked_out() {
        let servers = serde_json::json!({
            "a": { "command": "serve", "args": ["--verbose", "--api-key=in-the-option", "after-the-option", "-pattached-value"] },
            "b": { "url": "https://user-1:pass-word@host.example/s/key-in-the-path-0001/mcp?token=in-the-query#fragment-1" },
        });
        let secrets = Secrets::of(std::iter::empty(), servers.as_object().unwrap(), &[]);
        for secret in [
            "in-the-option",
            "after-the-option",
            "attached-value",
            "user-1",
            "pass-word",
            "key-in-the-path-0001",
            "in-the-query",
            "fragment-1",
        ] {
            assert_eq!(
                secrets.redact(&format!("serve --verbose <{secret}>")),
                "serve --verbose <[redacted]>"
            );
        }
        let url = servers["b"]["url"].as_str().unwrap();
        assert_eq!(secrets.redact(&format!("GET {url} failed")), "GET [redacted] failed");
    }

    #[test]
    fn escaped_and_many_lined_secrets_are_blacked_out() {
        let secret = "first \"line\"/ä😀\nsecond\\line";
        let secrets = secrets(secret);
        let json = serde_json::json!({ "key": secret }).to_string();
        assert_eq!(secrets.redact(&json), "{\"key\":\"[redacted]\"}");
        let ascii = r#"first \u0022line\"\/\u00e4\ud83d\ude00\nsecond\\line"#;
        assert_eq!(secrets.redact(&format!("<{ascii}>")), "<[redacted]>");
        assert_eq!(secrets.redact("> first \"line\"/ä😀"), "> [redacted]");
        assert_eq!(secrets.redact("> second\\line"), "> [redacted]");
        assert_eq!(secrets.redact("\\u12 \\ud800 \\"), "\\u12 \\ud800 \\");
    }

    proptest! {
        #[test]
        fn no_form_of_a_secret_is_shown(
            secret in "[ -~]{6,40}", before in "[ -~]{0,9}", after in "[ -~]{0,9}", escapes: u64,
        ) {
            let secrets = secrets(&secret);
            let whole = format!("{before}{secret}{after}");
            for form in [STANDARD.encode(&whole), URL_SAFE.encode(&whole), STANDARD_NO_PAD.encode(&whole), URL_SAFE_NO_PAD.encode(&whole)] {
                prop_assert_eq!(secrets.redact(&form), BLACK);
            }
            let json = serde_json::to_string(&whole).unwrap();
            let escaped = serde_json::to_string(&secret).unwrap();
            prop_assert!(!secrets.redact(&json).contains(escaped.trim_matches('"')));
            let hex = |text: &str| -> String { text.bytes().map(|byte| format!("{byte:02X}")).collect() };
            prop_assert!(!secrets.redact(&hex(&whole)).contains(&hex(&secret)));
            let escaped: String = secret.chars().enumerate().map(|(at, c)| {
                if c == '%' || escapes >> (at % 64) & 1 == 1 { format!("%{:02x}", u32::from(c)) } else { c.to_string() }
            }).collect();
            let shown = secrets.redact(&escaped);
            prop_assert!(shown.contains(BLACK) && !shown.contains(&escaped), "{}", shown);
        }
    }
}
