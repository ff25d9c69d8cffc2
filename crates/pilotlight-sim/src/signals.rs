//! Signal handling. SIGTERM and SIGHUP flush the transcript and exit with 128 + number, without a `result`. SIGINT
//! interrupts the turn and ends the process after it.
//!
//! Under the faults `hang` and `spin` signals have no effect, as in a claude whose event loop is stuck. The listener is
//! tokio's on a separate thread, because it needs no unsafe code.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::SyncSender;

use tokio::signal::unix::{SignalKind, signal};

use crate::input::{Batch, Input};
use crate::transcript_writer::Writer;

/// Set by faults: signals have no effect.
#[derive(Clone, Default)]
pub(crate) struct IgnoreSignals(Arc<AtomicBool>);

impl IgnoreSignals {
    pub(crate) fn set(&self) {
        self.0.store(true, Ordering::SeqCst);
    }

    fn is_set(&self) -> bool {
        self.0.load(Ordering::SeqCst)
    }
}

/// Starts the listener. On failure, signals keep their default effect.
pub(crate) fn listen(inputs: SyncSender<Batch>, transcript: Writer, ignore_signals: IgnoreSignals) {
    let Ok(runtime) = tokio::runtime::Builder::new_current_thread().enable_io().build() else { return };
    let streams = {
        let _guard = runtime.enter();
        (signal(SignalKind::terminate()), signal(SignalKind::hangup()), signal(SignalKind::interrupt()))
    };
    let (Ok(mut terminate), Ok(mut hangup), Ok(mut interrupt)) = streams else { return };
    // A closed pipe is an error of write(2) and no end, also where no Rust runtime has seen to it before `main`.
    let pipe = {
        let _guard = runtime.enter();
        signal(SignalKind::pipe())
    };
    let listener = move || {
        let _pipe = pipe;
        loop {
            let number = runtime.block_on(async {
                tokio::select! {
                    _ = terminate.recv() => 15,
                    _ = hangup.recv() => 1,
                    _ = interrupt.recv() => 2,
                }
            });
            if ignore_signals.is_set() {
                continue;
            }
            if number == 2 {
                if inputs.send(vec![Input::Interrupt]).is_err() {
                    return;
                }
                continue;
            }
            transcript.flush();
            std::process::exit(128 + number);
        }
    };
    drop(std::thread::Builder::new().name("signals".into()).stack_size(128 * 1024).spawn(listener));
}
