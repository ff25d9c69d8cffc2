//! Entry points of the fuzz targets into private modules. Built with `--cfg fuzzing` alone.

use std::path::Path;

use crate::adapter;
use crate::adapter::{self, HostRequest};
use crate::model::Decision;

/// Reads a line of a child in every way that a connection does.
///
/// # Panics
/// If a session id could be a path, or if an answer is not exactly one line.
pub fn read_every_way(line: &[u8]) {
    adapter::classify(line);
    let terminal = adapter::terminal(line);
    if let Some(id) = terminal.as_ref().and_then(|terminal| terminal.session_id.as_deref()) {
        assert!(Path::new(id).file_name().is_some_and(|name| name == id));
    }
    adapter::launch_refusal(terminal.as_ref(), &String::from_utf8_lossy(line));
    adapter::control_response(line);
    adapter::cancelled_request(line);
    adapter::checkpoint(line);
    adapter::text_delta(line);
    if let Some(HostRequest::Permission(request)) = adapter::host_request(line) {
        let answer = adapter::permission_response(&request, &Decision::Allow { updated_input: None });
        assert_eq!(answer.iter().filter(|&&byte| byte == b'\n').count(), 1);
    }
}
