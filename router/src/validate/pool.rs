//! Threads for work that takes milliseconds: templates and tokenisation, away from the async runtime.

use std::{
    collections::VecDeque,
    panic::{AssertUnwindSafe, catch_unwind},
    sync::Arc,
    time::Duration,
};

use parking_lot::{Condvar, Mutex};
use tokio::{sync::oneshot, time::timeout};

use crate::{allocator, error::Error};

/// Work expected to take longer than a few milliseconds goes to its own lane, and never occupies the last worker.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Lane {
    Short,
    Long,
}

type Job = Box<dyn FnOnce() + Send>;

/// A fixed number of threads with one bounded queue per lane. Dropping it lets the threads end.
pub(crate) struct Pool {
    shared: Arc<Shared>,
    capacity: usize,
    deadline: Duration,
}

struct Shared {
    queues: Mutex<Queues>,
    work: Condvar,
    /// Workers that may be on the long lane at once.
    long_limit: usize,
}

#[derive(Default)]
struct Queues {
    short: VecDeque<Job>,
    long: VecDeque<Job>,
    long_running: usize,
    closed: bool,
}

impl Pool {
    /// Starts `workers` threads. `capacity` bounds each lane's queue, `deadline` the wait for a job's result.
    pub(crate) fn start(workers: usize, capacity: usize, deadline: Duration) -> std::io::Result<Self> {
        let long_limit = workers.saturating_sub(1).max(1);
        let shared =
            Arc::new(Shared { queues: Mutex::new(Queues::default()), work: Condvar::new(), long_limit });
        for index in 0..workers {
            let shared = Arc::clone(&shared);
            std::thread::Builder::new()
                .name(format!("validation-{index}"))
                .spawn(move || shared.work_off())?;
        }
        Ok(Self { shared, capacity, deadline })
    }

    /// Runs `job` on a worker. Dropping the future takes back a job that has not started.
    pub(crate) async fn run<T: Send + 'static>(
        &self,
        lane: Lane,
        job: impl FnOnce() -> Result<T, Error> + Send + 'static,
    ) -> Result<T, Error> {
        let (reply, result) = oneshot::channel();
        let job: Job = Box::new(move || {
            if reply.is_closed() {
                return;
            }
            // A tokenizer that panics on some input costs that request, not the worker.
            let outcome = catch_unwind(AssertUnwindSafe(job)).unwrap_or(Err(Error::Internal));
            if lane == Lane::Long {
                // Tokenising takes some 300 bytes for each byte of text.
                allocator::return_free_memory();
            }
            reply.send(outcome).ok();
        });
        {
            let mut queues = self.shared.queues.lock();
            let queue = match lane {
                Lane::Short => &mut queues.short,
                Lane::Long => &mut queues.long,
            };
            if queue.len() >= self.capacity {
                return Err(Error::full());
            }
            queue.push_back(job);
        }
        self.shared.work.notify_one();
        match timeout(self.deadline, result).await {
            Ok(Ok(outcome)) => outcome,
            Ok(Err(_)) => Err(Error::Internal),
            Err(_) => Err(Error::DeadlineExceeded),
        }
    }
}

impl Drop for Pool {
    fn drop(&mut self) {
        self.shared.queues.lock().closed = true;
        self.shared.work.notify_all();
    }
}

impl Shared {
    fn work_off(&self) {
        let mut queues = self.queues.lock();
        while !queues.closed {
            let (job, lane) = if let Some(job) = queues.short.pop_front() {
                (job, Lane::Short)
            } else if queues.long_running < self.long_limit
                && let Some(job) = queues.long.pop_front()
            {
                queues.long_running += 1;
                (job, Lane::Long)
            } else {
                self.work.wait(&mut queues);
                continue;
            };
            drop(queues);
            job();
            queues = self.queues.lock();
            if lane == Lane::Long {
                queues.long_running -= 1;
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::mpsc;

    use super::*;

    const DEADLINE: Duration = Duration::from_secs(5);

    async fn until(pool: &Pool, holds: impl Fn(&Queues) -> bool) {
        let held = async {
            while !holds(&pool.shared.queues.lock()) {
                tokio::task::yield_now().await;
            }
        };
        timeout(DEADLINE, held).await.unwrap();
    }

    #[tokio::test]
    async fn long_jobs_leave_a_worker_to_short_ones() {
        let pool = Arc::new(Pool::start(2, 8, DEADLINE).unwrap());
        let (release, blocked) = mpsc::channel::<()>();
        let blocked = Arc::new(Mutex::new(blocked));
        let mut long = Vec::new();
        for _ in 0..3 {
            let (pool, blocked) = (Arc::clone(&pool), Arc::clone(&blocked));
            long.push(tokio::spawn(async move {
                pool.run(Lane::Long, move || {
                    blocked.lock().recv().ok();
                    Ok(())
                })
                .await
            }));
        }
        until(&pool, |queues| queues.long_running == 1 && queues.long.len() == 2).await;
        // A worker is left, or this would wait until its deadline.
        assert_eq!(pool.run(Lane::Short, || Ok(7)).await, Ok(7));
        for _ in 0..3 {
            release.send(()).unwrap();
        }
        for task in long {
            task.await.unwrap().unwrap();
        }
    }

    #[tokio::test]
    async fn a_full_queue_refuses_and_a_slow_job_times_out() {
        let pool = Arc::new(Pool::start(1, 1, Duration::from_millis(200)).unwrap());
        let (release, blocked) = mpsc::channel::<()>();
        let (begin, begun) = oneshot::channel();
        let running = {
            let pool = Arc::clone(&pool);
            tokio::spawn(async move {
                pool.run(Lane::Short, move || {
                    begin.send(()).ok();
                    blocked.recv().ok();
                    Ok(())
                })
                .await
            })
        };
        begun.await.unwrap();
        let waiting = {
            let pool = Arc::clone(&pool);
            tokio::spawn(async move { pool.run(Lane::Short, || Ok(())).await })
        };
        until(&pool, |queues| queues.short.len() == 1).await;
        assert!(matches!(pool.run(Lane::Short, || Ok(())).await, Err(Error::Overloaded { .. })));
        assert_eq!(running.await.unwrap(), Err(Error::DeadlineExceeded));
        assert_eq!(waiting.await.unwrap(), Err(Error::DeadlineExceeded));
        release.send(()).unwrap();
    }

    #[tokio::test]
    async fn a_panic_costs_one_job() {
        let pool = Pool::start(1, 8, DEADLINE).unwrap();
        assert_eq!(pool.run::<()>(Lane::Short, || panic!("boom")).await, Err(Error::Internal));
        assert_eq!(pool.run(Lane::Short, || Ok(1)).await, Ok(1));
    }
}
