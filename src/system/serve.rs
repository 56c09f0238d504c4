//! The metrics server: HTTP on a Unix socket or a loopback address, for scrapers on this machine. GET /metrics is OpenMetrics, GET
//! /json the same as JSON. One thread, one request at a time, small bounds on what a client may send and how long it may take.
//! Called by `ffi::monitoring`.

use super::export;
use crate::error::Error;
use crate::fail;
use crate::os::worker::{Bell, Thread};
use crate::sync::Mutex;
use std::io::{self, Read, Write};
use std::net::{IpAddr, SocketAddr, TcpListener, TcpStream};
use std::os::fd::AsRawFd;
use std::os::unix::fs::FileTypeExt;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

/// The longest request head.
const HEAD: usize = 8192;
/// How long a client may take.
const PATIENCE: Duration = Duration::from_secs(2);

enum Listener {
    Unix(UnixListener, PathBuf),
    Tcp(TcpListener),
}

enum Client {
    Unix(UnixStream),
    Tcp(TcpStream),
}

struct Server {
    listener: Listener,
    bell: Bell,
    thread: Option<Thread>,
}

static SERVER: Mutex<Option<&'static Server>> = Mutex::new(None);

fn io_error(what: &str, error: &io::Error) -> Error {
    fail!(Io, "{what}: {error}")
}

/// A socket that nobody listens on any more is in the way; one that somebody listens on, or any other file, is not ours to remove.
fn clear(path: &Path) -> Result<(), Error> {
    let Ok(found) = std::fs::symlink_metadata(path) else { return Ok(()) };
    if !found.file_type().is_socket() {
        return Err(fail!(Io, "{} is there and no socket: name another path", path.display()));
    }
    if UnixStream::connect(path).is_ok() {
        return Err(fail!(Busy, "another process serves {}: name another path", path.display()));
    }
    std::fs::remove_file(path).map_err(|error| io_error("an old socket cannot be removed", &error))
}

fn listen(address: &str) -> Result<Listener, Error> {
    let listener = if let Some(path) = address.strip_prefix("unix:") {
        let path = PathBuf::from(path);
        clear(&path)?;
        let listener = UnixListener::bind(&path).map_err(|error| io_error(address, &error))?;
        listener.set_nonblocking(true).map_err(|error| io_error(address, &error))?;
        Listener::Unix(listener, path)
    } else {
        let numeric = address.replacen("localhost:", "127.0.0.1:", 1);
        let Ok(socket) = numeric.parse::<SocketAddr>() else {
            return Err(fail!(
                InvalidArgument,
                "address = \"{address}\" is neither unix:PATH nor a loopback address with a port such as 127.0.0.1:9464"
            ));
        };
        let loopback = match socket.ip() {
            IpAddr::V4(ip) => ip.is_loopback(),
            IpAddr::V6(ip) => ip.is_loopback(),
        };
        if !loopback {
            return Err(fail!(
                InvalidArgument,
                "address = \"{address}\" can be reached from other machines; metrics are served on loopback or a Unix socket only"
            ));
        }
        let listener = TcpListener::bind(socket).map_err(|error| io_error(address, &error))?;
        listener.set_nonblocking(true).map_err(|error| io_error(address, &error))?;
        Listener::Tcp(listener)
    };
    Ok(listener)
}

/// `qmem_serve_metrics`.
pub fn start(address: &str) -> Result<(), Error> {
    let mut server = SERVER.lock();
    if server.is_some() {
        return Err(fail!(AlreadyInitialized, "metrics are served already: call qmem_stop_metrics first"));
    }
    let listener = listen(address)?;
    let bell = Bell::new()?;
    let made: &'static mut Server = Box::leak(Box::new(Server { listener, bell, thread: None }));
    let place = made as *mut Server;
    match Thread::spawn(c"qmem-metrics", body, place as usize) {
        Ok(thread) => {
            // SAFETY: leaked just now; the thread looks at listener and bell alone, never at `thread`.
            unsafe { (&raw mut (*place).thread).write(Some(thread)) };
            // SAFETY: as above; from here on it is only read until `stop` takes it apart.
            *server = Some(unsafe { &*place });
            Ok(())
        }
        Err(error) => {
            // SAFETY: leaked above, and no thread has it.
            unfasten(*unsafe { Box::from_raw(place) });
            Err(error)
        }
    }
}

fn unfasten(server: Server) {
    if let Listener::Unix(_, path) = &server.listener {
        let _ = std::fs::remove_file(path); // whoever removed it before us did the same
    }
}

/// `qmem_stop_metrics`.
pub fn stop() -> Result<(), Error> {
    let Some(server) = SERVER.lock().take() else {
        return Err(fail!(NotInitialized, "no metrics are served"));
    };
    server.bell.ring(1);
    // SAFETY: it came from a leaked box, and whoever takes it out of SERVER is the only one to have it but the thread, whose end is
    // waited for before it is dropped.
    let mut owned = unsafe { Box::from_raw(std::ptr::from_ref(server).cast_mut()) };
    if let Some(thread) = owned.thread.take() {
        thread.join();
    }
    unfasten(*owned);
    Ok(())
}

fn body(place: usize) {
    // SAFETY: `start` passes a leaked server, which `stop` frees only after this thread has ended.
    let (listener, bell) = unsafe {
        let server = place as *const Server;
        (&(*server).listener, &(*server).bell)
    };
    loop {
        let fd = match listener {
            Listener::Unix(l, _) => l.as_raw_fd(),
            Listener::Tcp(l) => l.as_raw_fd(),
        };
        bell.wait_with(fd);
        if bell.answer() {
            return;
        }
        let client = match listener {
            Listener::Unix(l, _) => l.accept().map(|(stream, _)| Client::Unix(stream)),
            Listener::Tcp(l) => l.accept().map(|(stream, _)| Client::Tcp(stream)),
        };
        // What a client does wrong is its own loss.
        let _ = match client {
            Ok(Client::Unix(stream)) => stream
                .set_nonblocking(false)
                .and_then(|()| stream.set_write_timeout(Some(PATIENCE)))
                .and_then(|()| answer(&stream, |left| stream.set_read_timeout(Some(left)))),
            Ok(Client::Tcp(stream)) => stream
                .set_nonblocking(false)
                .and_then(|()| stream.set_write_timeout(Some(PATIENCE)))
                .and_then(|()| answer(&stream, |left| stream.set_read_timeout(Some(left)))),
            Err(error) => Err(error),
        };
    }
}

/// Reads one request, within the time that a client has, and answers it.
fn answer<S: Copy + Read + Write>(mut stream: S, limit: impl Fn(Duration) -> io::Result<()>) -> io::Result<()> {
    let deadline = Instant::now() + PATIENCE;
    let mut head = Vec::new();
    let mut part = [0u8; 1024];
    while !head.windows(4).any(|end| end == b"\r\n\r\n") && !head.windows(2).any(|end| end == b"\n\n") {
        let left = deadline.saturating_duration_since(Instant::now());
        if left.is_zero() || head.len() > HEAD {
            return respond(&mut stream, "400 Bad Request", "text/plain", "the request's head is too long or too slow\n", true);
        }
        limit(left)?;
        let n = stream.read(&mut part)?;
        if n == 0 {
            return Ok(());
        }
        head.extend_from_slice(&part[..n]);
    }
    let line = String::from_utf8_lossy(head.split(|b| *b == b'\n').next().unwrap_or(&[])).into_owned();
    let mut words = line.split_whitespace();
    let (method, target) = (words.next().unwrap_or(""), words.next().unwrap_or(""));
    let with_body = method != "HEAD";
    if method != "GET" && method != "HEAD" {
        return respond(&mut stream, "405 Method Not Allowed", "text/plain", "GET or HEAD\n", with_body);
    }
    match target.split('?').next().unwrap_or("") {
        "/metrics" | "/" => {
            let kind = "application/openmetrics-text; version=1.0.0; charset=utf-8";
            respond(&mut stream, "200 OK", kind, &export::openmetrics(), with_body)
        }
        "/json" => respond(&mut stream, "200 OK", "application/json", &export::json(), with_body),
        _ => respond(&mut stream, "404 Not Found", "text/plain", "/metrics or /json\n", with_body),
    }
}

fn respond(stream: &mut impl Write, status: &str, kind: &str, body: &str, with_body: bool) -> io::Result<()> {
    let length = body.len();
    let head = format!("HTTP/1.1 {status}\r\nContent-Type: {kind}\r\nContent-Length: {length}\r\nConnection: close\r\n\r\n");
    stream.write_all(head.as_bytes())?;
    if with_body {
        stream.write_all(body.as_bytes())?;
    }
    stream.flush()
}

/// Before fork(2): nobody is inside until [`after_fork`].
pub fn before_fork() {
    SERVER.lock_for_fork();
}

/// The child serves nothing: the thread is not there, and the socket is the parent's.
///
/// # Safety
/// This thread called [`before_fork`].
pub unsafe fn after_fork(in_child: bool) {
    // SAFETY: the caller's promise.
    unsafe { SERVER.unlock_after_fork() };
    if in_child {
        *SERVER.lock() = None;
    }
}
