//! Something that goes wrong again and again, as on a full disk: said once, then seldom, and once when it is over. And what is
//! homing's own trouble, and not its workers'.

use std::io;
use std::time::{Duration, Instant};

use rustix::io::Errno;

/// Between two warnings of the same trouble.
const SAY_AGAIN: Duration = Duration::from_secs(600);

#[derive(Debug, Default)]
pub(crate) struct Trouble {
    /// When it was last said, while it lasts.
    said: Option<Instant>,
}

impl Trouble {
    /// It went wrong: whether to say so.
    pub(crate) fn is_news(&mut self, now: Instant) -> bool {
        let is_news = self.said.is_none_or(|said| now.duration_since(said) >= SAY_AGAIN);
        if is_news {
            self.said = Some(now);
        }
        is_news
    }

    /// It went well: whether to say that the trouble is over.
    pub(crate) fn is_over(&mut self) -> bool {
        self.said.take().is_some()
    }
}

/// Whether homing, or the machine, has no more of what a connection takes. The worker is not to blame.
pub(crate) fn is_want(error: &io::Error) -> bool {
    let wants = [Errno::MFILE, Errno::NFILE, Errno::NOBUFS, Errno::NOMEM];
    error.raw_os_error().is_some_and(|raw| wants.iter().any(|want| want.raw_os_error() == raw))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn trouble_is_said_once_then_seldom_and_its_end_once() {
        let mut trouble = Trouble::default();
        let start = Instant::now();
        assert!(!trouble.is_over(), "what never went wrong is not over");
        let said = |seconds: u64, trouble: &mut Trouble| trouble.is_news(start + Duration::from_secs(seconds));
        assert!(said(0, &mut trouble));
        assert!(!said(1, &mut trouble) && !said(599, &mut trouble));
        assert!(said(600, &mut trouble) && !said(601, &mut trouble));
        assert!(trouble.is_over() && !trouble.is_over());
        assert!(said(602, &mut trouble), "new trouble is news");
    }
}
