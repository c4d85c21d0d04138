//! The ranks of this machine among those of the group, which may be spread over several machines.

use std::ops::Range;

use anyhow::{Context, bail, ensure};

use crate::cli::ServeArgs;

/// Where ranks of one machine meet, if nothing else is said.
const LOOPBACK: &str = "127.0.0.1";

/// How a shard is told at which port the ranks meet.
pub const MASTER_PORT: &str = "MASTER_PORT";

/// Which ranks run here, and where they meet the others.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Ranks {
    pub first: u32,
    /// On this machine.
    pub count: u32,
    /// On all machines.
    pub world_size: u32,
    pub master_addr: String,
    /// 0: any free one, chosen for each start, on which only ranks of one machine can agree.
    pub master_port: u16,
}

impl Ranks {
    /// `count` ranks from `--rank` on, of `--world-size`.
    ///
    /// # Errors
    /// There are not that many, or it is not said where the machines meet.
    pub fn of(args: &ServeArgs, count: u32) -> anyhow::Result<Self> {
        let (first, world_size) = (args.rank, args.world_size.unwrap_or(count));
        if first.saturating_add(count) > world_size {
            let these = format!(
                "--rank {first} and --num-shard {count} make ranks {first} to {}",
                first.saturating_add(count - 1)
            );
            let Some(world_size) = args.world_size else {
                bail!("{these}: give --world-size, the number of ranks on all machines");
            };
            bail!("{these}, but --world-size {world_size} ends at rank {}: give another", world_size - 1);
        }
        let (master_addr, master_port) = if count == world_size {
            (args.master_addr.clone().unwrap_or_else(|| LOOPBACK.to_owned()), args.master_port.unwrap_or(0))
        } else {
            let why = format!("--world-size {world_size} is more than this machine's --num-shard {count}");
            let addr = args.master_addr.clone();
            let addr =
                addr.with_context(|| format!("{why}: give --master-addr, an address of rank 0's machine"))?;
            let port = args.master_port;
            let port =
                port.with_context(|| format!("{why}: give --master-port, the same on all machines"))?;
            ensure!(port > 0, "{why}: --master-port 0 is another on each, give one from 1 up");
            (addr, port)
        };
        Ok(Self { first, count, world_size, master_addr, master_port })
    }

    /// Whether rank 0 is here, and with it the router.
    pub fn lead(&self) -> bool {
        self.first == 0
    }

    pub fn span_machines(&self) -> bool {
        self.count < self.world_size
    }

    /// Where the ranks, if there are several, meet at a port that is not given.
    pub fn meet_at(&self) -> Option<&str> {
        (self.world_size > 1 && self.master_port == 0).then_some(self.master_addr.as_str())
    }

    pub fn range(&self) -> Range<u32> {
        self.first..self.first + self.count
    }
}

#[cfg(test)]
mod tests {
    use std::ffi::OsString;

    use super::*;
    use crate::cli::{Command, parse};

    fn ranks(count: u32, flags: &[&str]) -> anyhow::Result<Ranks> {
        let argv = ["lorikeet", "serve", "--model-id", "m"].iter().chain(flags).map(OsString::from);
        match parse(argv).unwrap().command {
            Command::Serve(args) => Ranks::of(&args, count),
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn one_machine_is_the_whole_group_and_meets_itself() {
        let alone = ranks(2, &[]).unwrap();
        assert_eq!((alone.range(), alone.world_size), (0..2, 2));
        assert!(alone.lead() && !alone.span_machines());
        assert_eq!((alone.master_addr.as_str(), alone.master_port), ("127.0.0.1", 0));
    }

    #[test]
    fn several_machines_share_the_ranks() {
        let flags =
            ["--world-size", "6", "--rank", "4", "--master-addr", "10.0.0.1", "--master-port", "29500"];
        let last = ranks(2, &flags).unwrap();
        assert_eq!(last.range(), 4..6);
        assert!(!last.lead() && last.span_machines());
        assert_eq!((last.master_addr.as_str(), last.master_port), ("10.0.0.1", 29500));
        assert!(ranks(2, &["--world-size", "2"]).is_ok_and(|ranks| !ranks.span_machines()));
    }

    #[test]
    fn what_cannot_be_names_value_bound_and_flag() {
        for (count, flags, message) in [
            (
                2,
                &["--rank", "1"][..],
                "--rank 1 and --num-shard 2 make ranks 1 to 2: give --world-size, the number of ranks on all machines",
            ),
            (
                2,
                &["--rank", "3", "--world-size", "4"],
                "--rank 3 and --num-shard 2 make ranks 3 to 4, but --world-size 4 ends at rank 3: give another",
            ),
            (
                4,
                &["--world-size", "2"],
                "--rank 0 and --num-shard 4 make ranks 0 to 3, but --world-size 2 ends at rank 1: give another",
            ),
            (
                1,
                &["--world-size", "2", "--master-port", "1"],
                "--world-size 2 is more than this machine's --num-shard 1: give --master-addr, an address of rank 0's machine",
            ),
            (
                1,
                &["--world-size", "2", "--master-addr", "a"],
                "--world-size 2 is more than this machine's --num-shard 1: give --master-port, the same on all machines",
            ),
            (
                1,
                &["--world-size", "2", "--master-addr", "a", "--master-port", "0"],
                "--world-size 2 is more than this machine's --num-shard 1: --master-port 0 is another on each, give one from 1 up",
            ),
        ] {
            assert_eq!(ranks(count, flags).unwrap_err().to_string(), message);
        }
    }
}
