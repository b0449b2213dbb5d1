//! Unnamed network namespaces: the kernel removes one when its last descriptor, thread and child process is gone.

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

/// The network namespace of the reading thread.
const OWN: &str = "/proc/thread-self/ns/net";

/// A network namespace with its own devices, addresses, routes and settings. Clones refer to the same namespace.
#[derive(Debug, Clone)]
pub struct Namespace {
    file: Arc<File>,
}

impl Namespace {
    /// Makes a namespace with nothing in it but a loopback device that is up.
    ///
    /// # Errors
    /// [`Error::Missing`] where the system does not allow it; [`Error::System`] if the new one cannot be entered.
    pub fn new() -> Result<Namespace, Error> {
        let made = on_a_thread(|| {
            sys::unshare_network()?;
            File::open(OWN)
        });
        let file = made.map_err(|error| Error::Missing(Missing::Namespaces(error.to_string())))?;
        let namespace = Namespace { file: Arc::new(file) };
        let loopback = || sys::set_up(sys::control_socket()?.as_fd(), "lo");
        namespace.run(loopback)?.map_err(|error| Missing::Devices(error.to_string()))?;
        Ok(namespace)
    }

    /// Runs a closure on a new thread inside the namespace and waits for it. Sockets that the closure opens stay in the
    /// namespace for good, whichever thread uses them later.
    ///
    /// # Errors
    /// [`Error::System`] if the thread cannot be started or cannot enter the namespace.
    ///
    /// # Panics
    /// If the closure panics.
    pub fn run<T: Send>(&self, work: impl FnOnce() -> T + Send) -> Result<T, Error> {
        on_a_thread(|| {
            self.enter()?;
            Ok(work())
        })
    }

    /// Builds a tokio runtime with `workers` worker threads; all its threads are in the namespace.
    ///
    /// # Errors
    /// [`Error::System`] if the runtime cannot be built.
    pub fn runtime(&self, workers: usize) -> Result<Runtime, Error> {
        let namespace = self.clone();
        let enter = move || namespace.enter().expect("the process that made a namespace may enter it");
        let built =
            runtime::Builder::new_multi_thread().worker_threads(workers).on_thread_start(enter).enable_all().build();
        let runtime = built.map_err(|error| Error::system("build a runtime", error))?;
        Ok(Runtime { runtime, namespace: self.clone() })
    }

    /// A command whose process will run in the namespace. `tokio::process::Command::from` accepts it too.
    pub fn command(&self, program: impl AsRef<std::ffi::OsStr>) -> Command {
        let file = self.file.clone();
        let mut command = Command::new(program);
        // SAFETY: between fork and exec the closure makes one system call on a descriptor that the child has, and
        // allocates nothing.
        #[allow(unsafe_code)]
        unsafe {
            command.pre_exec(move || sys::enter_network(file.as_fd()));
        }
        command
    }

    /// Sets a `net.` parameter of the namespace, as in `set("net.ipv4.tcp_slow_start_after_idle", "0")`. The machine's
    /// own parameter does not change.
    ///
    /// # Errors
    /// [`Error::System`], naming the parameter, if the namespace has no such parameter or the kernel refuses the value.
    pub fn set(&self, parameter: &str, value: &str) -> Result<(), Error> {
        let path = format!("/proc/sys/{}", parameter.replace('.', "/"));
        let failed = |error| Error::system(format!("set {parameter} to {value}"), error);
        self.run(|| fs::write(path, value))?.map_err(failed)
    }

    /// Reads a `net.` parameter of the namespace.
    ///
    /// # Errors
    /// [`Error::System`] if the namespace has no such parameter.
    pub fn get(&self, parameter: &str) -> Result<String, Error> {
        let path = format!("/proc/sys/{}", parameter.replace('.', "/"));
        let read = self.run(|| fs::read_to_string(path))?;
        Ok(read.map_err(|error| Error::system(format!("read {parameter}"), error))?.trim().to_owned())
    }

    fn enter(&self) -> Result<(), Error> {
        sys::enter_network(self.file.as_fd()).map_err(|error| Error::system("enter a network namespace", error))
    }
}

/// A tokio runtime whose threads, and so whose sockets, are in a namespace.
#[derive(Debug)]
pub struct Runtime {
    runtime: runtime::Runtime,
    namespace: Namespace,
}

impl Runtime {
    /// Spawns a future on a worker.
    pub fn spawn<F>(&self, future: F) -> JoinHandle<F::Output>
    where
        F: Future<Output: Send + 'static> + Send + 'static,
    {
        self.runtime.spawn(future)
    }

    /// Runs a future to completion on a thread in the namespace. Tokio's own `block_on` would poll it on the caller's
    /// thread, and its sockets would be in the caller's namespace.
    ///
    /// # Panics
    /// If the future panics.
    pub fn block_on<F>(&self, future: F) -> F::Output
    where
        F: Future<Output: Send> + Send,
    {
        let done = self.namespace.run(|| self.runtime.block_on(future));
        done.expect("the process that made a namespace may enter it")
    }

    /// A handle for `spawn` and `spawn_blocking` from other threads. Do not use the handle's `block_on`: it polls on
    /// the caller's thread and so opens sockets in the caller's namespace.
    pub fn handle(&self) -> &runtime::Handle {
        self.runtime.handle()
    }

    /// Shuts the runtime down without waiting for blocking work.
    pub fn shut_down(self) {
        self.runtime.shutdown_background();
    }
}

/// Runs work on a new thread, because a thread that has entered a namespace stays in it.
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
