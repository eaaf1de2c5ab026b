//! Calling clients' reclaimers without depending on them.
//!
//! Calls are made by a thread of their own, which the reclaimer waits for up to
//! a deadline. A thread whose call is late is left behind: it ends when its
//! call does, and the next call gets a new thread. A callback is never called
//! again while a call of it lasts, so there are never more such threads than
//! callbacks that hang.

use crate::client::untracked;
use crate::registry::reclaimers::{Called, Entry, ReclaimRequest};
use std::sync::Arc;
use std::sync::mpsc::{Receiver, RecvTimeoutError, Sender, channel};

/// How a call went, as far as it is known by its deadline.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Outcome {
    Called(Called),
    /// It goes on; nobody waits for it.
    Late,
}

struct Job {
    entry: Arc<Entry>,
    request: ReclaimRequest,
    done: Sender<Called>,
}

/// The thread that makes the calls, if there is one at the moment.
#[derive(Debug, Default)]
pub(super) struct Callers {
    jobs: Option<Sender<Job>>,
}

fn serve(jobs: &Receiver<Job>) {
    // Outside any scope: what a callback allocates is no client's.
    untracked(|| {
        while let Ok(job) = jobs.recv() {
            let called = job.entry.call(job.request);
            drop(job.entry);
            if job.done.send(called).is_err() {
                // Late: somebody else has the calls by now.
                return;
            }
        }
    });
}

impl Callers {
    /// Calls a claimed entry, on another thread if `apart`, and waits for its
    /// request's deadline at most.
    pub(super) fn call(
        &mut self,
        entry: &Arc<Entry>,
        request: ReclaimRequest,
        apart: bool,
    ) -> Outcome {
        if !apart {
            return Outcome::Called(entry.call(request));
        }
        let (done, answer) = channel();
        let job = Job {
            entry: Arc::clone(entry),
            request,
            done,
        };
        if let Err(job) = self.hand_over(job) {
            // The system has no thread to give.
            return Outcome::Called(job.entry.call(job.request));
        }
        match answer.recv_timeout(request.deadline) {
            Ok(called) => Outcome::Called(called),
            Err(RecvTimeoutError::Timeout | RecvTimeoutError::Disconnected) => {
                self.jobs = None;
                Outcome::Late
            }
        }
    }

    fn hand_over(&mut self, job: Job) -> Result<(), Job> {
        let job = match &self.jobs {
            Some(jobs) => match jobs.send(job) {
                Ok(()) => return Ok(()),
                Err(refused) => refused.0,
            },
            None => job,
        };
        let (jobs, inbox) = channel();
        let started = std::thread::Builder::new()
            .name("tiered-callbacks".to_owned())
            .spawn(move || serve(&inbox));
        if started.is_err() {
            return Err(job);
        }
        let sent = jobs.send(job).map_err(|refused| refused.0);
        self.jobs = Some(jobs);
        sent
    }

    /// Lets the thread go, if there is one: it ends when it has nothing to do.
    pub(super) fn dismiss(&mut self) {
        self.jobs = None;
    }
}
