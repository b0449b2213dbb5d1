//! Network namespaces without names: nothing is left of them when the last descriptor, thread and child is gone.

use std::fs::{self, File};
use std::future::Future;
use std::io;
use std::os::fd::AsFd;
use std::os::unix::process::CommandExt;
use std::panic::resume_unwind;
use std::process::Command;
use std::sync::Arc;
use std::thread;

use tokio::runtime;
use tokio::task::JoinHandle;

use super::{Error, Missing, sys};

/// Where a thread finds the network namespace that it is in.
const OWN: &str = "/proc/thread-self/ns/net";

/// A network namespace: devices, addresses, routes and settings of its own. A clone is the same one.
#[derive(Debug, Clone)]
pub struct Namespace {
    file: Arc<File>,
}

impl Namespace {
    /// A new one, with nothing in it but a loopback device that is up.
    ///
    /// # Errors
    /// [`Error::Missing`] where the system does not allow it.
    pub fn new() -> Result<Namespace, Error> {
        let made = on_a_thread(|| {
            sys::unshare_network()?;
            File::open(OWN)
        });
        let file = made.map_err(|error| Error::Missing(Missing::Namespaces(error.to_string())))?;
        let namespace = Namespace { file: Arc::new(file) };
        let loopback = || sys::set_up(sys::control_socket()?.as_fd(), "lo");
        namespace.run(loopback)?.map_err(|error| Error::system("bring up the loopback device", error))?;
        Ok(namespace)
    }

    /// Runs a closure on a thread in it and waits for its end. Sockets that it makes belong to the namespace for ever,
    /// wherever they go.
    ///
    /// # Errors
    /// When the namespace cannot be entered.
    ///
    /// # Panics
    /// When the closure does.
    pub fn run<T: Send>(&self, work: impl FnOnce() -> T + Send) -> Result<T, Error> {
        on_a_thread(|| {
            self.enter()?;
            Ok(work())
        })
    }

    /// A runtime of so many workers, all of whose threads are in it.
    ///
    /// # Errors
    /// When it cannot be built.
    pub fn runtime(&self, workers: usize) -> Result<Runtime, Error> {
        let namespace = self.clone();
        let enter = move || namespace.enter().expect("the process that made a namespace may enter it");
        let built =
            runtime::Builder::new_multi_thread().worker_threads(workers).on_thread_start(enter).enable_all().build();
        let runtime = built.map_err(|error| Error::system("build a runtime", error))?;
        Ok(Runtime { runtime, namespace: self.clone() })
    }

    /// A program that will run in it. It also fits `tokio::process::Command::from`.
    pub fn command(&self, program: impl AsRef<std::ffi::OsStr>) -> Command {
        let file = self.file.clone();
        let mut command = Command::new(program);
        // SAFETY: between fork and exec it makes one system call on a descriptor that the child has, and allocates
        // nothing.
        #[allow(unsafe_code)]
        unsafe {
            command.pre_exec(move || sys::enter_network(file.as_fd()));
        }
        command
    }

    /// Sets a `net.` parameter in it, as in `set("net.ipv4.tcp_slow_start_after_idle", "0")`. The machine's own is left alone.
    ///
    /// # Errors
    /// When there is no such parameter here, or it does not take the value; the message says which.
    pub fn set(&self, parameter: &str, value: &str) -> Result<(), Error> {
        let path = format!("/proc/sys/{}", parameter.replace('.', "/"));
        let failed = |error| Error::system(format!("set {parameter} to {value}"), error);
        self.run(|| fs::write(path, value))?.map_err(failed)
    }

    /// The value of a `net.` parameter in it.
    ///
    /// # Errors
    /// When there is no such parameter here.
    pub fn get(&self, parameter: &str) -> Result<String, Error> {
        let path = format!("/proc/sys/{}", parameter.replace('.', "/"));
        let read = self.run(|| fs::read_to_string(path))?;
        Ok(read.map_err(|error| Error::system(format!("read {parameter}"), error))?.trim().to_owned())
    }

    fn enter(&self) -> Result<(), Error> {
        sys::enter_network(self.file.as_fd()).map_err(|error| Error::system("enter a network namespace", error))
    }
}

/// A tokio runtime in a namespace. Whatever it runs has its sockets there.
#[derive(Debug)]
pub struct Runtime {
    runtime: runtime::Runtime,
    namespace: Namespace,
}

impl Runtime {
    /// Runs it on a worker.
    pub fn spawn<F>(&self, future: F) -> JoinHandle<F::Output>
    where
        F: Future<Output: Send + 'static> + Send + 'static,
    {
        self.runtime.spawn(future)
    }

    /// Runs a future to its end on a thread in the namespace, unlike tokio's, which would run it on the caller's, and
    /// its sockets would be the caller's.
    ///
    /// # Panics
    /// When the future does.
    pub fn block_on<F>(&self, future: F) -> F::Output
    where
        F: Future<Output: Send> + Send,
    {
        let done = self.namespace.run(|| self.runtime.block_on(future));
        done.expect("the process that made a namespace may enter it")
    }

    /// For `spawn` and `spawn_blocking` from elsewhere. Its `block_on` would run on the caller's thread and so in the
    /// caller's network: do not use that.
    pub fn handle(&self) -> &runtime::Handle {
        self.runtime.handle()
    }

    /// Ends it without waiting for blocking work.
    pub fn shut_down(self) {
        self.runtime.shutdown_background();
    }
}

/// A thread of its own, as a namespace is for ever the thread's.
fn on_a_thread<T: Send, E: Send + From<ThreadError>>(work: impl FnOnce() -> Result<T, E> + Send) -> Result<T, E> {
    thread::scope(|scope| {
        let thread = thread::Builder::new().name("link-namespace".to_owned()).spawn_scoped(scope, work);
        let thread = thread.map_err(ThreadError)?;
        thread.join().unwrap_or_else(|panic| resume_unwind(panic))
    })
}

/// A thread could not be started.
struct ThreadError(io::Error);

impl From<ThreadError> for io::Error {
    fn from(ThreadError(error): ThreadError) -> io::Error {
        error
    }
}

impl From<ThreadError> for Error {
    fn from(ThreadError(error): ThreadError) -> Error {
        Error::system("start a thread", error)
    }
}
