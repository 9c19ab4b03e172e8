//! A part of a cluster's plan: what is left of it when a failure is made small.

use std::fmt;
use std::str::FromStr;

use spandrel_actors::Site;

use super::ClusterPlan;

/// What of a plan is run; all of it by default.
#[derive(Debug, Clone, Default, PartialEq, Eq, clap::Args)]
pub struct Cut {
    /// Of a cluster: only these of its planned faults, counted from 0.
    #[arg(long, value_delimiter = ',', num_args = 0..)]
    pub faults: Option<Vec<usize>>,
    /// Of a cluster: rare things happen only at these places within its nodes.
    #[arg(long, value_delimiter = ',', num_args = 0..)]
    pub places: Option<Vec<PlaceName>>,
    /// Of a cluster: so many traces.
    #[arg(long)]
    pub traces: Option<usize>,
}

/// A place within nodes, by its name.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct PlaceName(Site);

impl FromStr for PlaceName {
    type Err = String;

    fn from_str(name: &str) -> Result<Self, String> {
        let named = Site::ALL.into_iter().find(|site| site.describe().0 == name);
        named.map(Self).ok_or_else(|| "no such place".to_owned())
    }
}

impl fmt::Display for PlaceName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.0.describe().0)
    }
}

/// As the flags that ask for it.
impl fmt::Display for Cut {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if let Some(faults) = &self.faults {
            list(f, "faults", faults)?;
        }
        if let Some(places) = &self.places {
            list(f, "places", places)?;
        }
        match self.traces {
            Some(traces) => write!(f, " --traces {traces}"),
            None => Ok(()),
        }
    }
}

fn list(f: &mut fmt::Formatter<'_>, flag: &str, all: &[impl fmt::Display]) -> fmt::Result {
    write!(f, " --{flag}")?;
    all.iter().enumerate().try_for_each(|(number, one)| {
        let before = if number == 0 { " " } else { "," };
        write!(f, "{before}{one}")
    })
}

impl Cut {
    /// All of a plan.
    pub(crate) fn all(plan: &ClusterPlan) -> Self {
        let places = plan.sites.keys().copied().map(PlaceName);
        Self {
            faults: Some((0..plan.faults.len()).collect()),
            places: Some(places.collect()),
            traces: Some(plan.node.traces),
        }
    }
}

impl ClusterPlan {
    /// What is left of the plan.
    #[must_use]
    pub fn cut(mut self, cut: &Cut) -> Self {
        if let Some(kept) = &cut.faults {
            let faults = std::mem::take(&mut self.faults).into_iter().enumerate();
            let faults = faults.filter(|(number, _)| kept.contains(number));
            self.faults = faults.map(|(_, planned)| planned).collect();
        }
        if let Some(kept) = &cut.places {
            self.sites
                .retain(|site, _| kept.contains(&PlaceName(*site)));
        }
        if let Some(traces) = cut.traces {
            self.node.traces = self.node.traces.min(traces.max(1));
        }
        self
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::Parser;

    #[derive(Debug, Parser)]
    struct Flags {
        #[command(flatten)]
        cut: Cut,
    }

    #[test]
    fn a_cut_is_read_from_the_flags_that_it_is_written_as() {
        let plan = ClusterPlan::of(14);
        for cut in [
            Cut::default(),
            Cut::all(&plan),
            Cut {
                faults: Some(vec![2]),
                places: Some(Vec::new()),
                traces: Some(1),
            },
        ] {
            let flags = format!("replay{cut}");
            let read = Flags::parse_from(flags.split(' ')).cut;
            assert_eq!(read, cut);
        }
        assert!(Flags::try_parse_from(["replay", "--places", "nowhere"]).is_err());
    }

    #[test]
    fn a_plan_is_cut_to_what_is_named() {
        let plan = ClusterPlan::of(14);
        assert_eq!(plan.clone().cut(&Cut::all(&plan)), plan);
        let cut = Cut {
            faults: Some(vec![1]),
            places: Some(Vec::new()),
            traces: Some(3),
        };
        let small = plan.clone().cut(&cut);
        assert_eq!(small.faults, plan.faults[1..2]);
        assert_eq!((small.sites.len(), small.node.traces), (0, 3));
    }
}
