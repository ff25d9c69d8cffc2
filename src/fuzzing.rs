//! Entry points of the fuzz targets into private modules. Built with `--cfg fuzzing` alone.

use std::path::Path;

use crate::adapter::claude::CLAUDE;
use crate::adapter::{Adapter, HostRequest};
use crate::model::Decision;

/// Reads a line of a child in every way that a connection does.
///
/// # Panics
/// If a session id could be a path, or if an answer is not exactly one line.
pub fn read_every_way(line: &[u8]) {
    CLAUDE.classify(line);
    let terminal = CLAUDE.terminal(line);
    if let Some(id) = terminal.as_ref().and_then(|terminal| terminal.session_id.as_deref()) {
        assert!(Path::new(id).file_name().is_some_and(|name| name == id));
    }
    CLAUDE.launch_refusal(terminal.as_ref(), &String::from_utf8_lossy(line));
    CLAUDE.control_response(line);
    CLAUDE.cancelled_request(line);
    CLAUDE.checkpoint(line);
    CLAUDE.text_delta(line);
    if let Some(HostRequest::Permission(request)) = CLAUDE.host_request(line) {
        let answer = CLAUDE.permission_response(&request, &Decision::Allow { updated_input: None });
        assert_eq!(answer.iter().filter(|&&byte| byte == b'\n').count(), 1);
    }
}
