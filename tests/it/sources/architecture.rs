//! ARCHITECTURE.md names what exists: each table with the columns `file` and `function` is compared with the sources.

use std::collections::BTreeSet;

use super::text::read;
use crate::common::built::repository;

/// Heading of the table that lists the steps of a warm streamed turn.
const NATURAL_PATH: &str = "natural path";

/// Maximum steps and files of the natural path: the whole of it, and its part below the server.
const STEPS: (usize, usize) = (30, 15);
const CORE_STEPS: (usize, usize) = (12, 6);

/// One row of a table: under which heading, in which file, which functions or types.
#[derive(Debug, PartialEq)]
struct Row {
    heading: String,
    file: String,
    names: Vec<String>,
}

/// The rows of all tables that have a column `file` and one `function`.
fn rows(page: &str) -> Vec<Row> {
    let (mut rows, mut heading) = (Vec::new(), String::new());
    let mut columns = None;
    for line in page.lines() {
        if line.starts_with('#') {
            heading = line.trim_start_matches('#').trim().to_lowercase();
        }
        let Some(row) = line.strip_prefix('|') else {
            columns = None;
            continue;
        };
        let cells: Vec<&str> = row.trim_end().trim_end_matches('|').split('|').map(str::trim).collect();
        let column = |name: &str| cells.iter().position(|cell| cell.eq_ignore_ascii_case(name));
        match columns {
            None => columns = Some((column("file"), column("function"))),
            Some((Some(file), Some(function))) if !cells[0].starts_with("--") => {
                let file =
                    code(cells[file]).into_iter().next().unwrap_or_else(|| panic!("no file in: {line}"));
                rows.push(Row { heading: heading.clone(), file, names: code(cells[function]) });
            }
            Some(_) => {}
        }
    }
    rows
}

/// The code spans of a cell.
fn code(cell: &str) -> Vec<String> {
    cell.split('`').skip(1).step_by(2).map(str::to_owned).collect()
}

/// The file below the repository's root; modules of the library may be named without `src/`.
fn path(file: &str) -> String {
    let candidates = [file.to_owned(), format!("src/{file}")];
    let found = candidates.into_iter().find(|path| repository().join(path).is_file());
    found.unwrap_or_else(|| panic!("ARCHITECTURE.md names {file}, which does not exist"))
}

/// Whether a source defines a function or type of this name, written as `name`, `name()` or `Type::name`.
fn defines(source: &str, name: &str) -> bool {
    let name = name.trim_end_matches("()").rsplit("::").next().unwrap_or_default();
    let kinds = ["fn", "struct", "enum", "trait", "const", "static", "type", "macro_rules!"];
    kinds.iter().any(|kind| {
        source.match_indices(&format!("{kind} {name}")).any(|(at, found)| {
            let after = &source[at + found.len()..];
            !after.starts_with(|c: char| c.is_alphanumeric() || c == '_')
        })
    })
}

#[test]
fn architecture_names_functions_that_exist() {
    let missing: Vec<_> = rows(&read("ARCHITECTURE.md"))
        .iter()
        .flat_map(|row| {
            let source = read(&path(&row.file));
            assert!(!row.names.is_empty(), "no function in the row of {}", row.file);
            let missing = row.names.iter().filter(|name| !defines(&source, name));
            missing.map(|name| format!("{}: {name}", row.file)).collect::<Vec<_>>()
        })
        .collect();
    assert!(missing.is_empty(), "ARCHITECTURE.md names what does not exist: {missing:#?}");
}

#[test]
fn natural_path_is_short() {
    let rows = rows(&read("ARCHITECTURE.md"));
    let steps: Vec<_> = rows.iter().filter(|row| row.heading.contains(NATURAL_PATH)).collect();
    let core: Vec<_> =
        steps.iter().filter(|row| !path(&row.file).starts_with("src/server")).copied().collect();
    for (what, steps, most) in [("the natural path", steps, STEPS), ("its core", core, CORE_STEPS)] {
        let functions: usize = steps.iter().map(|row| row.names.len()).sum();
        let files = steps.iter().map(|row| &row.file).collect::<BTreeSet<_>>().len();
        assert!(functions <= most.0 && files <= most.1, "{what}: {functions} steps in {files} files");
    }
}

#[test]
fn table_of_functions_is_read_by_its_columns() {
    let page = "## The natural path\n\n| step | file | function |\n|---|---|---|\n| 1 | [`src/a.rs`](src/a.rs) | `A::b`, `c()` |\n\n| file | why |\n|---|---|\n| `x` | y |\n";
    let row = Row {
        heading: "the natural path".to_owned(),
        file: "src/a.rs".to_owned(),
        names: vec!["A::b".to_owned(), "c()".to_owned()],
    };
    assert_eq!(rows(page), [row]);
    assert!(defines("pub async fn c(x: u8) {}", "c()") && defines("fn b<T>() {}", "A::b"));
    assert!(!defines("fn cd() {}", "c") && !defines("c();", "c"));
}
