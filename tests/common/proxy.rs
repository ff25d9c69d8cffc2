//! What stands between the CLI and its API: a way that can be cut and restored while both live.

use std::net::SocketAddr;
use std::sync::Arc;

use tokio::io::copy_bidirectional;
use tokio::net::{TcpListener, TcpSocket, TcpStream};
use tokio::sync::watch;
use tokio::task::{AbortHandle, JoinSet};

/// What becomes of those who call.
#[derive(Debug, Clone, Copy, PartialEq)]
enum Way {
    Open,
    /// They are heard and then reset.
    Reset,
}

/// The way; it ends with this value.
pub struct Proxy {
    address: SocketAddr,
    target: SocketAddr,
    way: Arc<watch::Sender<Way>>,
    tasks: JoinSet<()>,
    listening: Option<AbortHandle>,
    /// Keeps the port while connections are refused: another test's listener would answer there.
    held: Option<TcpSocket>,
}

impl Proxy {
    /// A way to the API at `url`.
    pub async fn to(url: &str) -> Self {
        let target = url.trim_start_matches("http://").parse().expect("an address");
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port on loopback");
        let address = listener.local_addr().expect("the port just bound");
        let way = Arc::new(watch::Sender::new(Way::Open));
        let mut proxy = Self { address, target, way, tasks: JoinSet::new(), listening: None, held: None };
        proxy.listen(listener);
        proxy
    }

    pub fn url(&self) -> String {
        format!("http://{}", self.address)
    }

    /// From now on every connection is reset, those that are open as well.
    pub fn reset(&self) {
        self.way.send_replace(Way::Reset);
    }

    /// From now on nobody listens.
    pub async fn refuse(&mut self) {
        self.reset();
        if let Some(listening) = self.listening.take() {
            listening.abort();
        }
        // The port is free once the listener has been dropped.
        while self.held.is_none() {
            let socket = TcpSocket::new_v4().expect("a socket");
            socket.set_reuseaddr(true).expect("an option of each socket");
            self.held = socket.bind(self.address).is_ok().then_some(socket);
            tokio::task::yield_now().await;
        }
    }

    /// All is well again.
    pub fn restore(&mut self) {
        self.way.send_replace(Way::Open);
        if let Some(held) = self.held.take() {
            self.listen(held.listen(128).expect("the port is held"));
        }
    }

    fn listen(&mut self, listener: TcpListener) {
        let (way, target) = (Arc::clone(&self.way), self.target);
        self.listening = Some(self.tasks.spawn(async move {
            let mut connections = JoinSet::new();
            while let Ok((caller, _)) = listener.accept().await {
                connections.spawn(carry(caller, target, way.subscribe()));
            }
        }));
    }
}

/// Carries one connection, until it ends or is to be reset.
async fn carry(mut caller: TcpStream, target: SocketAddr, mut way: watch::Receiver<Way>) {
    tokio::select! {
        biased;
        () = async { drop(way.wait_for(|way| *way == Way::Reset).await) } => {
            // Only once something was said: else it might be taken for a refusal.
            caller.readable().await.ok();
        }
        () = async {
            if let Ok(mut api) = TcpStream::connect(target).await {
                copy_bidirectional(&mut caller, &mut api).await.ok();
            }
        } => return,
    }
    // Closed with a zero linger the connection is reset, not ended.
    rustix::net::sockopt::set_socket_linger(&caller, Some(std::time::Duration::ZERO)).ok();
}
