//! Questions of many callers in one statement.
//!
//! A statement costs PostgreSQL more to parse and plan than to answer, and when thousands sign in at
//! once each asks the same few. So while a statement is on its way what comes meanwhile waits for it and
//! goes together. Alone a question goes at once.

use std::collections::VecDeque;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use tidings_core::ports::directory::{Answer, DirectoryError};
use tokio::sync::oneshot;

use super::answered;
use super::call::{Attempt, Calls};
use super::faults::unavailable;

/// Questions of one statement.
const TOGETHER: usize = 64;

/// Questions that wait; beyond it they are refused.
const WAITING_MAX: usize = 8_192;

type Tell<A> = oneshot::Sender<Result<A, DirectoryError>>;

/// Questions of one kind. A statement's answers are as many as its questions, in their order.
pub(super) struct Together<Q, A> {
    calls: Arc<Calls>,
    name: &'static str,
    attempt: Attempt<Vec<Q>, Vec<A>>,
    state: Mutex<State<Q, A>>,
}

struct State<Q, A> {
    waiting: VecDeque<(Q, Tell<A>)>,
    /// A task works off what waits.
    is_asking: bool,
}

impl<Q, A> Together<Q, A>
where
    Q: Send + Sync + 'static,
    A: Send + 'static,
{
    pub(super) fn new(
        calls: &Arc<Calls>,
        name: &'static str,
        attempt: Attempt<Vec<Q>, Vec<A>>,
    ) -> Arc<Together<Q, A>> {
        Arc::new(Together {
            calls: Arc::clone(calls),
            name,
            attempt,
            state: Mutex::new(State {
                waiting: VecDeque::new(),
                is_asking: false,
            }),
        })
    }

    /// Asks with the next statement, which begins after this call. Who gives up waiting isn't asked for.
    ///
    /// # Errors
    /// As a call's; [`DirectoryError::Unavailable`] too when too many wait.
    pub(super) fn ask(self: &Arc<Self>, question: Q) -> Answer<'static, A> {
        let (tell, told) = oneshot::channel();
        let mut state = self.state();
        if state.waiting.len() >= WAITING_MAX {
            return answered(Err(unavailable()));
        }
        state.waiting.push_back((question, tell));
        if !std::mem::replace(&mut state.is_asking, true) {
            let together = Arc::clone(self);
            self.calls.spawn(async move { together.work_off().await });
        }
        drop(state);
        Box::pin(async move { told.await.unwrap_or_else(|_| Err(unavailable())) })
    }

    async fn work_off(&self) {
        while let Some((questions, tell)) = self.next() {
            let answers = self.calls.run(false, self.name, questions, self.attempt);
            match answers.await {
                Ok(answers) => {
                    for (tell, answer) in tell.into_iter().zip(answers) {
                        _ = tell.send(Ok(answer));
                    }
                }
                Err(error) => {
                    for tell in tell {
                        _ = tell.send(Err(error.clone()));
                    }
                }
            }
        }
    }

    /// The next statement's questions; none: this task is over.
    fn next(&self) -> Option<(Vec<Q>, Vec<Tell<A>>)> {
        let mut state = self.state();
        let (mut questions, mut tells) = (Vec::new(), Vec::new());
        while questions.len() < TOGETHER
            && let Some((question, tell)) = state.waiting.pop_front()
        {
            if !tell.is_closed() {
                questions.push(question);
                tells.push(tell);
            }
        }
        if questions.is_empty() {
            state.is_asking = false;
            return None;
        }
        Some((questions, tells))
    }

    fn state(&self) -> MutexGuard<'_, State<Q, A>> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
