//! Names of tools, and the flag that leaves only some of them. Pure.

use std::collections::BTreeSet;

/// Flag with the CLI's own tools that exist.
const TOOLS: &str = "--tools";
/// Value of the flag for all tools.
const ALL: &str = "default";

/// The value of the flag for `wanted`, without those that the configured arguments leave out. Takes the flag out of the
/// arguments: the CLI adds up the values of a repeated flag.
pub(super) fn restricted(wanted: &BTreeSet<String>, args: &mut Vec<String>) -> String {
    let mut configured: Option<Vec<String>> = None;
    let (mut kept, mut is_value) = (Vec::new(), false);
    for arg in args.drain(..) {
        let inline = arg.strip_prefix(TOOLS).and_then(|rest| rest.strip_prefix('='));
        is_value = arg == TOOLS || (is_value && !arg.starts_with('-'));
        match inline.or(is_value.then_some(arg.as_str())) {
            Some(values) => {
                let values = values.split([',', ' ']).filter(|name| !name.is_empty() && *name != TOOLS);
                configured.get_or_insert_default().extend(values.map(str::to_owned));
            }
            None => kept.push(arg),
        }
    }
    *args = kept;
    let is_left = |name: &&String| {
        configured
            .as_ref()
            .is_none_or(|configured| configured.iter().any(|other| other == ALL || other == *name))
    };
    wanted.iter().filter(is_left).map(String::as_str).collect::<Vec<_>>().join(",")
}

/// The MCP server of a tool; `None` for the CLI's own tools.
#[cfg(feature = "server")]
pub(crate) fn mcp_server_of(tool: &str) -> Option<&str> {
    let (server, _) = tool.strip_prefix("mcp__")?.split_once("__")?;
    Some(server)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tools_of_a_restriction_only_narrow_configured_ones() {
        for (args, wanted, expected, left) in [
            (&[][..], &["Bash", "Read"][..], "Bash,Read", &[][..]),
            (&[], &[], "", &[]),
            (&["--a", "x"], &["Read"], "Read", &["--a", "x"]),
            (&["--tools", "", "--a"], &["Read"], "", &["--a"]),
            (&["--tools", "Read", "Glob", "--a"], &["Bash", "Glob", "Read"], "Glob,Read", &["--a"]),
            (&["--tools=Read, Glob", "b"], &["Bash", "Read"], "Read", &["b"]),
            (&["--tools", "default"], &["Bash"], "Bash", &[]),
            (&["--tools", "Read", "--tools", "Bash"], &["Bash"], "Bash", &[]),
            (&["--tools-more", "Bash"], &["Bash"], "Bash", &["--tools-more", "Bash"]),
        ] {
            let mut args: Vec<String> = args.iter().map(|arg| (*arg).to_owned()).collect();
            let wanted = wanted.iter().map(|name| (*name).to_owned()).collect();
            assert_eq!(restricted(&wanted, &mut args), expected, "{args:?}");
            assert_eq!(args, left);
        }
    }

    #[cfg(feature = "server")]
    #[test]
    fn mcp_tool_names_its_server() {
        assert_eq!(mcp_server_of("mcp__git_hub__create_issue"), Some("git_hub"));
        assert_eq!(mcp_server_of("mcp__a__b__c"), Some("a"));
        assert_eq!(mcp_server_of("Bash"), None);
    }
}
