//! What signals do: SIGTERM and SIGHUP save the transcript and exit with 128 + number, without a `result`; SIGINT
//! interrupts the turn and ends the process after it.
//!
//! A program that is stuck (`hang`, `spin`) does not answer signals, as the real one, whose handlers run on the very
//! thread that is stuck. The listener is tokio's, on a thread of its own, because that is the safe one at hand.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::SyncSender;

use tokio::signal::unix::{SignalKind, signal};

use super::input::{Batch, Input};
use super::transcript::Writer;

/// Set by faults: signals that ask for an end are taken and forgotten.
#[derive(Clone, Default)]
pub(crate) struct Deaf(Arc<AtomicBool>);

impl Deaf {
    pub(crate) fn set(&self) {
        self.0.store(true, Ordering::SeqCst);
    }

    fn is_set(&self) -> bool {
        self.0.load(Ordering::SeqCst)
    }
}

/// Starts to listen. Signals have their default effect if that fails.
pub(crate) fn listen(inputs: SyncSender<Batch>, transcript: Writer, deaf: Deaf) {
    let Ok(runtime) = tokio::runtime::Builder::new_current_thread().enable_io().build() else { return };
    let streams = {
        let _guard = runtime.enter();
        (signal(SignalKind::terminate()), signal(SignalKind::hangup()), signal(SignalKind::interrupt()))
    };
    let (Ok(mut terminate), Ok(mut hangup), Ok(mut interrupt)) = streams else { return };
    let listener = move || {
        loop {
            let number = runtime.block_on(async {
                tokio::select! {
                    _ = terminate.recv() => 15,
                    _ = hangup.recv() => 1,
                    _ = interrupt.recv() => 2,
                }
            });
            if deaf.is_set() {
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
