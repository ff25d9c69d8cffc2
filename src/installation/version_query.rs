//! The question `--version`: one run of the CLI through the shim, with an empty environment.

use std::path::Path;
use std::time::Duration;

use tokio::io::AsyncReadExt as _;

use super::program::Found;
use crate::child::{ChildLimits, Contained, Exit, Isolation, Launch, ShimProgram, SpawnError, spawn};

/// How long `--version` may take. The slowest known CLI needs a second and a half from a cold disk.
const VERSION_WITHIN: Duration = Duration::from_secs(20);
/// Longest version text kept.
const VERSION_CHARS: usize = 100;
/// Bytes read for it: the version is in the first line.
const VERSION_BYTES: u64 = 16 << 10;

/// The version that a program prints. It runs in `home`, through the shim as every child does, and gets nothing of this
/// program's environment but the path to its own interpreter. `None`: it did not end by itself in time. Inside: what it
/// printed, if anything.
pub(crate) async fn version(
    found: &Found,
    shim: &ShimProgram,
    home: &Path,
) -> Result<Option<Option<String>>, SpawnError> {
    let mut args = found.first_args.clone();
    args.push("--version".into());
    let path = std::env::var_os("PATH").map(|path| ("PATH".into(), path));
    let env: Vec<_> = [("HOME".into(), home.into())].into_iter().chain(path).collect();
    let launch = Launch {
        program: &found.path,
        args: &args,
        env: &env,
        cwd: home,
        limits: &ChildLimits::default(),
        isolation: &Isolation::default(),
        cgroup: None,
        fence: None,
    };
    let child = spawn(shim, &launch)?;
    Ok(tokio::time::timeout(VERSION_WITHIN, answer_of(child)).await.ok().flatten())
}

/// The answer of a child that ends by itself. Dropped, the child is ended.
async fn answer_of(child: Box<Contained>) -> Option<Option<String>> {
    let Contained { input, output, mut stderr, mut shim, .. } = *child;
    drop(input);
    let (mut kept, mut nowhere) = (Vec::new(), tokio::io::sink());
    let mut output = output.take(VERSION_BYTES);
    // Complaints are drained, or they would hold it up.
    let (read, _) = tokio::join!(output.read_to_end(&mut kept), tokio::io::copy(&mut stderr, &mut nowhere));
    read.ok()?;
    match shim.exited().await {
        Exit::Code(0) => Some(first_line(&kept)),
        Exit::Code(_) => Some(None),
        _ => None,
    }
}

fn first_line(output: &[u8]) -> Option<String> {
    let text = String::from_utf8_lossy(output);
    let line = text.lines().find(|line| !line.trim().is_empty())?;
    Some(line.chars().filter(|character| !character.is_control()).take(VERSION_CHARS).collect())
}
