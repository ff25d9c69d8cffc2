//! What must hold with every version that is supported in full. Included once for each of them: the module's name is the
//! version, as in `v2_1_332::basics::…`, so that a filter chooses one.

mod attach;
pub(crate) mod attachments;
mod bare;
mod basics;
pub(crate) mod bench;
mod caller_tools;
mod commands;
pub(crate) mod context;
mod crashes;
mod credentials;
mod embedded;
mod evictions;
mod hibernation;
pub(crate) mod history;
mod interrupts;
mod inventory;
pub(crate) mod journal;
mod leftovers;
mod mcp;
mod models;
mod questions;
mod restarts;
mod retries;
pub(crate) mod smoke;
mod spares;
mod starts;
mod steering;
mod tools;
mod traps_api;
mod traps_asks;
mod traps_ends;
mod traps_files;
mod traps_input;
mod traps_kills;
mod traps_own_turns;
mod traps_slow;
mod traps_turns;
mod unasked;
mod verbs;
mod without;

/// The version that this copy of the suite runs with.
fn version() -> String {
    let module = module_path!().rsplit("::").next().unwrap_or_default();
    module.trim_start_matches('v').replace('_', ".")
}

/// Whether it is 2.1.332 or later.
fn is_since_332() -> bool {
    version() != "2.1.197"
}
