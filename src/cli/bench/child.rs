//! Child processes that do not outlive the measurement.

use std::io;
use std::process::{Child, ChildStdout, Command};
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal, kill_process};

/// How long a child that cleans up after itself may take; then it is killed.
const CLEANS_UP_WITHIN: Duration = Duration::from_secs(10);
/// How often to look whether it is done.
const LOOK_EVERY: Duration = Duration::from_millis(5);

/// A child process. It ends with this value, and on Linux also with this process, however that ends.
pub(super) struct Tied {
    child: Child,
    ended_by: Signal,
}

impl Tied {
    /// Starts a process that has nothing to clean up, and is killed in the end.
    ///
    /// On Linux a child ends with the *thread* that started it, so that has to be the main thread.
    pub(super) fn start(command: &mut Command) -> io::Result<Tied> {
        Tied::spawn(command, Signal::KILL)
    }

    /// As [`Tied::start`], for a process that has children and folders of its own: it is told to end, and waited for.
    pub(super) fn start_measurement(command: &mut Command) -> io::Result<Tied> {
        Tied::spawn(command, Signal::TERM)
    }

    fn spawn(command: &mut Command, ended_by: Signal) -> io::Result<Tied> {
        #[cfg(target_os = "linux")]
        end_with_parent(command, ended_by);
        Ok(Tied { child: command.spawn()?, ended_by })
    }

    pub(super) fn id(&self) -> u32 {
        self.child.id()
    }

    /// Its standard output, if that is piped and was not taken before.
    pub(super) fn take_output(&mut self) -> Option<ChildStdout> {
        self.child.stdout.take()
    }

    pub(super) fn has_ended(&mut self) -> io::Result<bool> {
        Ok(self.child.try_wait()?.is_some())
    }

    /// Waits for its own end.
    pub(super) fn succeeds(mut self) -> io::Result<bool> {
        Ok(self.child.wait()?.success())
    }

    /// Ends it and waits for that.
    pub(super) fn end(&mut self) {
        // What fails here is that it has ended already, or will not.
        if self.ended_by == Signal::TERM && !self.has_ended().unwrap_or(true) {
            let _ = kill_process(Pid::from_child(&self.child), self.ended_by);
            let until = Instant::now() + CLEANS_UP_WITHIN;
            while Instant::now() < until && !self.has_ended().unwrap_or(true) {
                std::thread::sleep(LOOK_EVERY);
            }
        }
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

impl Drop for Tied {
    fn drop(&mut self) {
        self.end();
    }
}

/// The kernel sends this signal to the child once its parent's thread is gone.
#[cfg(target_os = "linux")]
#[allow(unsafe_code)]
fn end_with_parent(command: &mut Command, signal: Signal) {
    use std::os::unix::process::CommandExt;

    use rustix::process::{getpid, getppid, set_parent_process_death_signal};

    let parent = getpid();
    // SAFETY: between fork and exec only two system calls are made, and no memory is allocated.
    unsafe {
        command.pre_exec(move || {
            set_parent_process_death_signal(Some(signal))?;
            // The parent may have ended just before.
            if getppid() == Some(parent) { Ok(()) } else { Err(io::ErrorKind::NotFound.into()) }
        });
    }
}
