//! The socket in the data directory: one line of JSON is an order, one line is its answer.
//!
//! Whoever may open the socket may do everything: it is the owner's alone (mode 0600).

use std::{
    fs::{self, DirBuilder, Permissions},
    io::{self, BufRead as _, BufReader, Read as _, Write as _},
    os::unix::{
        fs::{DirBuilderExt as _, PermissionsExt as _},
        net::{UnixListener, UnixStream},
    },
    path::{Path, PathBuf},
    rc::Rc,
    sync::Arc,
    time::Duration,
};

use serde::{Deserialize, Serialize};
use serde_json::Value;
use tokio::{
    io::{AsyncBufReadExt as _, AsyncReadExt as _, AsyncWriteExt as _},
    sync::watch,
    task::JoinSet,
    time::Instant,
};

use super::{Control, Order, Refusal};
use crate::{
    gate::Live,
    server::{self, Orders, Stage},
};

/// The socket's name in the data directory.
const NAME: &str = "control.sock";
/// Longest order, in bytes: tens of thousands of event ids.
const ORDER_LIMIT: u64 = 1 << 20;
/// Longest answer, in bytes: the largest body there can be, escaped.
const ANSWER_LIMIT: u64 = 8 << 30;
/// How long an order may take to arrive, and its answer to be taken.
const PATIENCE: Duration = Duration::from_secs(10);
/// How long an order may take to be carried out: a copy of a large store.
const LONGEST: Duration = Duration::from_hours(1);
/// Orders carried out at a time.
const AT_ONCE: usize = 8;
/// Pause after an accept that failed, for want of descriptors or memory as a rule.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

/// An answer.
#[derive(Debug, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
enum Answer {
    Done(Value),
    Refused(Refusal),
}

/// Where orders come in; the file goes when this is dropped.
#[derive(Debug)]
pub struct Socket {
    listener: UnixListener,
    path: PathBuf,
}

impl Socket {
    /// Makes the socket in a data directory that is locked for this process: what is there already
    /// was left by one that ended.
    ///
    /// # Errors
    /// When the directory cannot hold a socket; a path is too long from about 100 bytes on.
    pub fn bind(dir: &Path) -> io::Result<Self> {
        let path = dir.join(NAME);
        // Made where nobody else can reach it, until nobody else may open it.
        let private = dir.join("c");
        let _ = fs::remove_dir_all(&private);
        DirBuilder::new().mode(0o700).create(&private)?;
        let made = private.join("s");
        let listener = UnixListener::bind(&made)?;
        listener.set_nonblocking(true)?;
        fs::set_permissions(&made, Permissions::from_mode(0o600))?;
        fs::rename(&made, &path)?;
        fs::remove_dir(&private)?;
        Ok(Self { listener, path })
    }
}

impl Drop for Socket {
    fn drop(&mut self) {
        // The next process replaces it if this fails.
        let _ = fs::remove_file(&self.path);
    }
}

/// Carries out what comes in until the process drains.
///
/// # Errors
/// When the socket cannot be listened at.
pub async fn serve(
    socket: Socket,
    control: Control,
    mut orders: watch::Receiver<Orders<Arc<Live>>>,
) -> io::Result<()> {
    let listener = tokio::net::UnixListener::from_std(socket.listener.try_clone()?)?;
    let control = Rc::new(control);
    let mut tasks = JoinSet::new();
    let mut pause_until: Option<Instant> = None;
    loop {
        if orders.borrow_and_update().stage == Stage::Draining {
            return Ok(());
        }
        tokio::select! {
            changed = orders.changed() => {
                // Whoever gave the orders is gone: so is the process.
                if changed.is_err() {
                    return Ok(());
                }
            }
            _ = tasks.join_next(), if !tasks.is_empty() => {}
            accepted = listener.accept(), if tasks.len() < AT_ONCE && pause_until.is_none() => {
                match accepted {
                    Ok((stream, _)) => {
                        let live = orders.borrow().news.clone();
                        tasks.spawn_local(answer(stream, control.clone(), live));
                    }
                    // An operator waits; what senders and upstreams do goes on.
                    Err(error) => {
                        tracing::warn!(%error, "cannot accept an order; trying again");
                        pause_until = Some(Instant::now() + ACCEPT_PAUSE);
                    }
                }
            }
            () = server::until(pause_until) => pause_until = None,
        }
    }
}

/// Reads one order and answers it; whoever is slow is left.
async fn answer(stream: tokio::net::UnixStream, control: Rc<Control>, live: Arc<Live>) {
    let (reading, mut writing) = stream.into_split();
    let mut line = Vec::new();
    let mut reading = tokio::io::BufReader::new(reading.take(ORDER_LIMIT));
    let read = reading.read_until(b'\n', &mut line);
    if !matches!(tokio::time::timeout(PATIENCE, read).await, Ok(Ok(_))) {
        return;
    }
    let answer = match serde_json::from_slice::<Order>(&line) {
        Ok(order) => match control.carry_out(order, &live.endpoints).await {
            Ok(done) => Answer::Done(done),
            Err(refused) => Answer::Refused(refused),
        },
        Err(_) => {
            let what = "the order is not one this version knows";
            Answer::Refused(Refusal::Failed(what.to_owned()))
        }
    };
    let mut text = serde_json::to_vec(&answer).unwrap_or_default();
    text.push(b'\n');
    // Whoever asked has gone if this fails.
    let _ = tokio::time::timeout(PATIENCE, writing.write_all(&text)).await;
}

/// The running instance that uses a data directory.
#[derive(Debug)]
pub struct Running(UnixStream);

impl Running {
    /// Finds it; `None` when nobody listens.
    ///
    /// # Errors
    /// When somebody does, and not for us.
    pub fn find(dir: &Path) -> io::Result<Option<Self>> {
        match UnixStream::connect(dir.join(NAME)) {
            Ok(stream) => Ok(Some(Self(stream))),
            Err(error) => {
                let is_nobody = matches!(
                    error.kind(),
                    io::ErrorKind::NotFound | io::ErrorKind::ConnectionRefused
                );
                if is_nobody { Ok(None) } else { Err(error) }
            }
        }
    }

    /// Gives it an order and waits for the answer.
    ///
    /// # Errors
    /// What it said, or that it did not.
    pub fn ask(mut self, order: &Order) -> Result<Value, Refusal> {
        let failed = |error: io::Error| {
            Refusal::Failed(format!("the running instance did not answer: {error}"))
        };
        let mut exchange = || {
            self.0.set_write_timeout(Some(PATIENCE))?;
            self.0.set_read_timeout(Some(LONGEST))?;
            let mut line = serde_json::to_vec(order)?;
            line.push(b'\n');
            self.0.write_all(&line)?;
            let mut answer = Vec::new();
            BufReader::new(&self.0)
                .take(ANSWER_LIMIT)
                .read_until(b'\n', &mut answer)?;
            Ok(serde_json::from_slice(&answer)?)
        };
        match exchange().map_err(failed)? {
            Answer::Done(done) => Ok(done),
            Answer::Refused(refused) => Err(refused),
        }
    }
}
