//! Imports go down only: a module never names a module of its own rank or of a higher one.

use std::collections::BTreeMap;

use super::text::{files_below, read, without_tests};

/// Modules from the highest layer to the lowest; those of one rank do not know each other.
const LAYERS: &[&[&str]] = &[
    &["bin", "fuzzing", "testing"],
    &["server"],
    &["system"],
    &["supervisor", "spares"],
    &["session"],
    &["admission", "installation", "isolation", "broker"],
    &["spend"],
    &["cluster"],
    &["child", "workspace"],
    &["turn", "journal"],
    &["telemetry", "adapter"],
    &["error"],
    &["config"],
    &["model"],
    &["support"],
    // Packages of their own, which know nothing of this one.
    &["shim", "sim"],
];

/// Upward imports that are still there, as `(importing module, imported module)`. Empty is the aim.
const EXCEPTIONS: &[(&str, &str)] = &[];

fn rank(module: &str) -> usize {
    let layer = LAYERS.iter().position(|layer| layer.contains(&module));
    LAYERS.len() - layer.unwrap_or_else(|| panic!("`{module}` has no layer: add it to LAYERS"))
}

/// The top-level module of a source file, and how many modules it is nested in.
fn module_of(file: &str) -> (&str, usize) {
    let path = file.strip_prefix("src/").unwrap().trim_end_matches(".rs");
    let parts: Vec<_> = path.split('/').collect();
    (parts[0], parts.len())
}

/// Names that the crate's root exports again, each with the module it comes from.
fn root_exports() -> BTreeMap<String, String> {
    let root = without_tests(&read("src/lib.rs"));
    let mut exports = BTreeMap::new();
    for statement in root.split(';').filter_map(|part| part.split_once("pub use ").map(|(_, rest)| rest)) {
        let Some((module, _)) = statement.split_once("::") else { continue };
        for name in statement
            .split(|c: char| !c.is_alphanumeric() && c != '_')
            .filter(|name| name.starts_with(char::is_uppercase))
        {
            exports.insert(name.to_owned(), module.to_owned());
        }
    }
    exports
}

/// Each first name behind a path prefix like `crate::`, inside braces as well.
fn names_behind(source: &str, prefix: &str) -> Vec<String> {
    let mut names = Vec::new();
    for (at, _) in source.match_indices(prefix) {
        let is_whole =
            !source[..at].ends_with(|c: char| c.is_alphanumeric() || c == '_' || c == ':' || c == '$');
        let rest = &source[at + prefix.len()..];
        if is_whole {
            match rest.strip_prefix('{') {
                Some(group) => names.extend(first_names(group)),
                None => names.extend(first_name(rest)),
            }
        }
    }
    names
}

/// The first name of each member of a group, up to its closing brace.
fn first_names(group: &str) -> Vec<String> {
    let mut names = Vec::new();
    let (mut depth, mut begin) = (0, 0);
    for (at, c) in group.char_indices() {
        match c {
            '{' => depth += 1,
            '}' if depth > 0 => depth -= 1,
            ',' | '}' if depth == 0 => {
                names.extend(first_name(group[begin..at].trim_start()));
                begin = at + 1;
                if c == '}' {
                    break;
                }
            }
            _ => {}
        }
    }
    names
}

fn first_name(path: &str) -> Option<String> {
    let name: String = path.chars().take_while(|c| c.is_alphanumeric() || *c == '_').collect();
    (!name.is_empty()).then_some(name)
}

/// The top-level modules that a file names.
fn imports(source: &str, depth: usize, exports: &BTreeMap<String, String>) -> Vec<String> {
    let code = without_tests(source);
    let mut names = names_behind(&code, "crate::");
    // A path of as many `super` as the file is deep begins at the root.
    names.extend(names_behind(&code, &"super::".repeat(depth)).into_iter().filter(|name| name != "super"));
    let module = |name: String| match exports.get(&name) {
        Some(module) => module.clone(),
        None => name,
    };
    names
        .into_iter()
        .map(module)
        .filter(|name| LAYERS.iter().any(|layer| layer.contains(&name.as_str())))
        .collect()
}

#[test]
fn layers_import_downwards() {
    let exports = root_exports();
    let mut upward = BTreeMap::<(String, String), Vec<String>>::new();
    for file in files_below("src") {
        let is_tests = file.ends_with("/tests.rs") || file.contains("/tests/");
        // Programs are crates of their own: what they name as `crate::` is theirs.
        if !file.ends_with(".rs") || is_tests || file == "src/lib.rs" || file.starts_with("src/bin/") {
            continue;
        }
        let (module, depth) = module_of(&file);
        let own = rank(module);
        for imported in imports(&read(&file), depth, &exports) {
            if imported != module && rank(&imported) >= own {
                upward.entry((module.to_owned(), imported)).or_default().push(file.clone());
            }
        }
    }
    let is_known = |pair: &(String, String)| EXCEPTIONS.contains(&(pair.0.as_str(), pair.1.as_str()));
    let gone: Vec<_> = EXCEPTIONS
        .iter()
        .filter(|(from, to)| !upward.contains_key(&((*from).to_owned(), (*to).to_owned())))
        .collect();
    let new: Vec<_> = upward.iter().filter(|(pair, _)| !is_known(pair)).collect();
    assert!(new.is_empty(), "imports that do not go down, with the files that have them: {new:#?}");
    assert!(gone.is_empty(), "no longer there, remove from EXCEPTIONS: {gone:?}");
}

#[test]
fn upward_import_is_found_in_every_form() {
    let exports = BTreeMap::from([("Session".to_owned(), "system".to_owned())]);
    let found = |source: &str| imports(source, 2, &exports);
    assert_eq!(found("use crate::server::auth;"), ["server"]);
    assert_eq!(
        found("use crate::{model::ids, child::{exit, spawn}, Session};"),
        ["model", "child", "system"]
    );
    assert_eq!(found("fn f(s: &crate::Session) {}"), ["system"]);
    assert_eq!(found("use super::super::turn::Event;"), ["turn"]);
    assert_eq!(found("use super::turn::Event; // crate::server"), [""; 0]);
    assert_eq!(found("pub(in crate::session) fn f() {}"), ["session"]);
    assert_eq!(found("#[cfg(test)]\nmod tests {\n    use crate::server;\n}\n"), [""; 0]);
}
