//! Places at which a simulation lets the node do what it may do and rarely does: "buggification" (Zhou et al.,
//! FoundationDB, SIGMOD 2021, section 4). Without the feature `buggify`, which only the simulation asks for, nothing of
//! it is compiled.

#[cfg(feature = "buggify")]
use std::sync::Arc;

/// A place in the node, and what happens there instead of the usual.
#[allow(missing_docs)] // each variant is described by `Site::describe`
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Site {
    SmallFrame,
    SpansNotTaken,
    SpansSentTwice,
    NoticeLate,
    FrameRefused,
    CatchUpFails,
    FillFails,
    OutcomeUnknown,
    FalseAlarm,
    JobLate,
    PressureFelt,
    TrimmedNow,
    PagedNow,
    PagesNotShipped,
    ComparedAgain,
    CopyRefused,
    AnswerSlow,
    QuestionRefused,
    LifeRenewed,
}

impl Site {
    /// All of them.
    pub const ALL: [Self; 19] = [
        Self::SmallFrame,
        Self::SpansNotTaken,
        Self::SpansSentTwice,
        Self::NoticeLate,
        Self::FrameRefused,
        Self::CatchUpFails,
        Self::FillFails,
        Self::OutcomeUnknown,
        Self::FalseAlarm,
        Self::JobLate,
        Self::PressureFelt,
        Self::TrimmedNow,
        Self::PagedNow,
        Self::PagesNotShipped,
        Self::ComparedAgain,
        Self::CopyRefused,
        Self::AnswerSlow,
        Self::QuestionRefused,
        Self::LifeRenewed,
    ];

    /// Its name, without spaces, and what happens there.
    #[must_use]
    pub fn describe(self) -> (&'static str, &'static str) {
        match self {
            Self::SmallFrame => (
                "small-frame",
                "a frame takes only the first of the records that wait",
            ),
            Self::SpansNotTaken => (
                "spans-not-taken",
                "a primary refuses spans, as if it led the shard no more",
            ),
            Self::SpansSentTwice => (
                "spans-sent-twice",
                "an entry node offers spans again that were taken",
            ),
            Self::NoticeLate => (
                "notice-late",
                "a follower is not told at this tick how far shards are on every copy",
            ),
            Self::FrameRefused => ("frame-refused", "a follower refuses a frame that fits"),
            Self::CatchUpFails => (
                "catch-up-fails",
                "a follower is not sent what it lacks, and begins anew",
            ),
            Self::FillFails => (
                "fill-fails",
                "what a shard held is sent to a joining replica, and the attempt counts as failed",
            ),
            Self::OutcomeUnknown => (
                "outcome-unknown",
                "the owners of shards have changed, and whoever proposed it does not know",
            ),
            Self::FalseAlarm => (
                "false-alarm",
                "the leader of the settings takes a node for silent that is not",
            ),
            Self::JobLate => ("job-late", "a job beside the actors begins a second late"),
            Self::PressureFelt => (
                "pressure-felt",
                "memory counts as short: a trace of each shard is decided early",
            ),
            Self::TrimmedNow => (
                "trimmed-now",
                "journal and blocks are looked through at once for what nobody needs",
            ),
            Self::PagedNow => (
                "paged-now",
                "pages are written though little waits for them",
            ),
            Self::PagesNotShipped => (
                "pages-not-shipped",
                "a follower does not get pages, and builds them itself",
            ),
            Self::ComparedAgain => (
                "compared-again",
                "what nodes hold is compared again, long before a day is over",
            ),
            Self::CopyRefused => ("copy-refused", "a holder gives no older data now"),
            Self::AnswerSlow => (
                "answer-slow",
                "a node answers a part of a query a second late: another is asked",
            ),
            Self::QuestionRefused => (
                "question-refused",
                "a node refuses a part of a query, as if it had too many",
            ),
            Self::LifeRenewed => (
                "life-renewed",
                "a node begins another life, long before it is due",
            ),
        }
    }
}

/// Says at which places the unusual happens. The default one: nowhere.
#[derive(Clone, Default)]
pub struct Buggify {
    #[cfg(feature = "buggify")]
    decide: Option<Arc<dyn Fn(Site) -> bool + Send + Sync>>,
}

impl Buggify {
    /// `decide` is asked each time that the node comes to a place.
    #[cfg(feature = "buggify")]
    #[must_use]
    pub fn new(decide: impl Fn(Site) -> bool + Send + Sync + 'static) -> Self {
        Self {
            decide: Some(Arc::new(decide)),
        }
    }

    /// Whether it happens now.
    #[cfg(feature = "buggify")]
    #[must_use]
    pub(crate) fn strikes(&self, site: Site) -> bool {
        self.decide.as_ref().is_some_and(|decide| decide(site))
    }

    /// Whether it happens now: never, in this build.
    #[cfg(not(feature = "buggify"))]
    #[inline]
    #[must_use]
    #[allow(clippy::unused_self)] // as in the other build
    pub(crate) fn strikes(&self, _: Site) -> bool {
        false
    }

    /// Waits a second if it happens now.
    pub(crate) async fn pause(&self, site: Site) {
        if self.strikes(site) {
            tokio::time::sleep(std::time::Duration::from_secs(1)).await;
        }
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    #[test]
    fn every_place_is_listed_once_under_a_name_of_its_own() {
        let sites: BTreeSet<Site> = Site::ALL.into_iter().collect();
        let names: BTreeSet<&str> = Site::ALL.iter().map(|site| site.describe().0).collect();
        assert_eq!([sites.len(), names.len()], [Site::ALL.len(); 2]);
        assert_eq!(Site::LifeRenewed as usize + 1, Site::ALL.len());
    }

    #[test]
    fn nothing_happens_by_itself() {
        let none = Buggify::default();
        assert!(!Site::ALL.iter().any(|site| none.strikes(*site)));
    }
}
