//! Tables for people and JSON for programs, on standard output.
//!
//! Names of users and sessions are text of strangers: hidden characters, among them those that control a terminal, never
//! reach it.

use std::io::Write as _;
use std::time::{Duration, SystemTime};

use comfy_table::{CellAlignment, Table};
use pilotlight::is_hidden;
use serde_json::Value;

use super::server::Problem;
use crate::args::{FAILED, note};

const MIB: f64 = 1024.0 * 1024.0;
/// Longest text in a column; longer ones end in an ellipsis.
const WIDEST: usize = 40;

pub(crate) fn line(text: &str) {
    if let Err(error) = writeln!(std::io::stdout(), "{text}") {
        // A reader that has left (`| head`) has what it wants; a full disk has not.
        let code = if error.kind() == std::io::ErrorKind::BrokenPipe { 0 } else { FAILED };
        if code != 0 {
            note(&format!("pilotlight: cannot print: {error}"));
        }
        std::process::exit(code.into());
    }
}

pub(super) fn json(value: &Value) -> Result<(), Problem> {
    line(&plain_json(&serde_json::to_string_pretty(value).map_err(|error| error.to_string())?));
    Ok(())
}

/// Rows below a heading; the columns after the first `left` ones are numbers.
pub(crate) fn table(heading: &[&str], left: usize, rows: Vec<Vec<String>>) {
    let mut table = Table::new();
    table.load_style(comfy_table::presets::NOTHING);
    table.set_header(heading);
    for row in rows {
        table.add_row(row);
    }
    for (index, column) in table.column_iter_mut().enumerate() {
        column.set_padding((0, 2));
        if index >= left {
            column.set_cell_alignment(CellAlignment::Right);
        }
    }
    table.lines().for_each(|text| line(text.trim_end()));
}

pub(super) fn sessions(sessions: &[Value], user: Option<&str>) {
    let heading =
        ["USER", "SESSION", "STATE", "MODEL", "PID", "TURNS", "QUEUE", "RESTARTS", "MEMORY", "COST", "IDLE"];
    let rows = sessions.iter().map(|session| {
        vec![
            short(session["user"].as_str().or(user).unwrap_or_default()),
            short(session["id"].as_str().unwrap_or_default()),
            state(session),
            short(session["model"].as_str().unwrap_or("-")),
            session["pid"].as_u64().map_or("-".to_owned(), |pid| pid.to_string()),
            number(&session["turns"]),
            number(&session["queue_depth"]),
            number(&session["restarts"]),
            memory(&session["memory_bytes"]),
            dollars(&session["total_cost_usd"]),
            duration(&session["idle_seconds"]),
        ]
    });
    table(&heading, 4, rows.collect());
}

/// The nodes of a cluster. Their names and addresses are the operators' own.
#[cfg(feature = "cluster")]
pub(super) fn cluster(status: &Value) -> Result<(), Problem> {
    let nodes = status["nodes"].as_array().map(Vec::as_slice).unwrap_or_default();
    let text = |value: &Value| short(value.as_str().unwrap_or_default());
    let rows = nodes.iter().map(|node| {
        let is_asked = node["name"] == status["node"];
        let state = if node["draining"] == true { "draining" } else { "serving" };
        vec![
            format!("{}{}", text(&node["name"]), if is_asked { " *" } else { "" }),
            text(&node["address"]),
            state.to_owned(),
            text(&node["version"]),
            number(&node["users"]),
            number(&node["room"]),
        ]
    });
    table(&["NODE", "ADDRESS", "STATE", "VERSION", "USERS", "ROOM"], 4, rows.collect());
    if let Some(coming) = status["coming"].as_u64().filter(|coming| *coming > 0) {
        line(&format!(
            "{coming} users of the data directory of the node that was asked are not in the cluster yet"
        ));
    }
    Ok(())
}

/// A session's fields, one a line, and the permissions that its tools wait for.
pub(super) fn session(session: &Value, pending: &Value) {
    let mut rows = vec![
        ("session", plain(session["id"].as_str().unwrap_or_default())),
        ("state", state(session)),
        ("model", plain(session["model"].as_str().unwrap_or("-"))),
        ("pid", session["pid"].as_u64().map_or("-".to_owned(), |pid| pid.to_string())),
        ("generation", number(&session["generation"])),
        ("turns", number(&session["turns"])),
        ("waiting turns", number(&session["queue_depth"])),
        ("restarts", number(&session["restarts"])),
        ("memory", memory(&session["memory_bytes"])),
        ("cost", dollars(&session["total_cost_usd"])),
        ("idle", duration(&session["idle_seconds"])),
        ("created", ago(&session["created_at"])),
    ];
    let exit = &session["last_exit"];
    if let Some(reason) = exit["reason"].as_str() {
        let detail = plain(exit["detail"].as_str().unwrap_or_default());
        rows.push(("last exit", format!("{} ({detail}), {}", plain(reason), ago(&exit["at"]))));
    }
    for permission in pending.as_array().into_iter().flatten() {
        let tool = plain(permission["tool_name"].as_str().unwrap_or_default());
        let id = plain(permission["request_id"].as_str().unwrap_or_default());
        rows.push(("waits for", format!("permission of {tool}, {} [{id}]", ago(&permission["created_at"]))));
    }
    rows.into_iter().for_each(|(name, value)| line(&format!("{name:<14} {value}")));
}

pub(super) fn usage(usage: &Value) {
    let rows = usage["days"].as_array().into_iter().flatten().map(|day| {
        vec![
            plain(day["day"].as_str().unwrap_or_default()),
            number(&day["turns"]),
            dollars(&day["cost_usd"]),
            number(&day["input_tokens"]),
            number(&day["output_tokens"]),
            number(&day["cache_read_input_tokens"]),
            number(&day["cache_creation_input_tokens"]),
        ]
    });
    table(&["DAY", "TURNS", "COST", "INPUT", "OUTPUT", "CACHE READ", "CACHE WRITTEN"], 1, rows.collect());
    if let Some(limit) = usage["limit_usd"].as_f64() {
        let resets = duration(&usage["resets_in"]);
        line(&format!(
            "{} of {limit:.2} $ are left today; the day ends in {resets}",
            dollars(&usage["remaining_usd"])
        ));
    }
}

fn state(session: &Value) -> String {
    let state = plain(session["state"].as_str().unwrap_or_default());
    if session["frozen"] == true { format!("{state} (frozen)") } else { state }
}

/// Text of strangers with each hidden character as its number.
pub(crate) fn plain(text: &str) -> String {
    let mut plain = String::with_capacity(text.len());
    for character in text.chars() {
        match is_hidden(character) {
            true => plain.extend(character.escape_unicode()),
            false => plain.push(character),
        }
    }
    plain
}

/// JSON with the same meaning, in which hidden characters are escaped. Only its texts can have any, apart from the ends
/// of its lines.
pub(super) fn plain_json(json: &str) -> String {
    let mut plain = String::with_capacity(json.len());
    for character in json.chars() {
        if character == '\n' || !is_hidden(character) {
            plain.push(character);
        } else {
            character
                .encode_utf16(&mut [0; 2])
                .iter()
                .for_each(|unit| plain.push_str(&format!("\\u{unit:04x}")));
        }
    }
    plain
}

fn short(text: &str) -> String {
    let text = plain(text);
    if text.chars().count() <= WIDEST {
        return text;
    }
    let mut short: String = text.chars().take(WIDEST - 1).collect();
    short.push('…');
    short
}

fn number(value: &Value) -> String {
    value.as_u64().map_or("-".to_owned(), |number| number.to_string())
}

fn memory(value: &Value) -> String {
    match value.as_f64() {
        None | Some(0.0) => "-".to_owned(),
        Some(bytes) => format!("{:.0} MiB", bytes / MIB),
    }
}

fn dollars(value: &Value) -> String {
    value.as_f64().map_or("-".to_owned(), |dollars| format!("{dollars:.4} $"))
}

fn duration(seconds: &Value) -> String {
    let seconds = seconds.as_f64().and_then(|seconds| Duration::try_from_secs_f64(seconds).ok());
    seconds.map_or("-".to_owned(), in_words)
}

fn ago(moment: &Value) -> String {
    let moment = moment.as_f64().and_then(|seconds| Duration::try_from_secs_f64(seconds).ok());
    let moment = moment.and_then(|since| SystemTime::UNIX_EPOCH.checked_add(since));
    match moment.and_then(|moment| SystemTime::now().duration_since(moment).ok()) {
        Some(passed) => format!("{} ago", in_words(passed)),
        None => "-".to_owned(),
    }
}

/// The two largest units.
fn in_words(duration: Duration) -> String {
    let seconds = duration.as_secs();
    match seconds {
        0..60 => format!("{seconds} s"),
        60..3_600 => format!("{} min {} s", seconds / 60, seconds % 60),
        3_600..86_400 => format!("{} h {} min", seconds / 3_600, seconds % 3_600 / 60),
        _ => format!("{} d {} h", seconds / 86_400, seconds % 86_400 / 3_600),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn text_of_strangers_cannot_drive_the_terminal() {
        assert_eq!(plain("a\u{1b}[2Jb\r\n"), "a\\u{1b}[2Jb\\u{d}\\u{a}");
        assert_eq!(plain("\u{9b}2J\u{7f}"), "\\u{9b}2J\\u{7f}");
        assert_eq!(plain("\u{202e}x\u{61c}\u{200b}"), "\\u{202e}x\\u{61c}\\u{200b}");
        assert_eq!(plain("Zoë 😀"), "Zoë 😀");
        assert_eq!(short(&"x".repeat(50)).chars().count(), WIDEST);
    }

    #[test]
    fn json_is_the_same_without_hidden_characters() {
        let value = serde_json::json!({"a\u{9b}": "\u{1b}[2J\n \u{7f}\u{202e}\u{e0041} Zoë 😀", "b": [1]});
        let text = plain_json(&serde_json::to_string_pretty(&value).unwrap());
        assert!(text.chars().all(|character| character == '\n' || !is_hidden(character)), "{text}");
        assert_eq!(serde_json::from_str::<Value>(&text).unwrap(), value);
        assert!(text.contains("Zoë 😀"), "{text}");
    }

    #[test]
    fn durations_have_two_units() {
        for (seconds, expected) in
            [(0, "0 s"), (59, "59 s"), (61, "1 min 1 s"), (3_700, "1 h 1 min"), (90_000, "1 d 1 h")]
        {
            assert_eq!(in_words(Duration::from_secs(seconds)), expected);
        }
    }
}
