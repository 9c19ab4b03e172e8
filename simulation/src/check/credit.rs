//! The credit pool never gives out more than it has, and what is taken of it is what its holders hold.
//!
//! Not verified: that the memory in use is what was charged (P4 is measured on the real process).

use spandrel_actors::CreditAccount;

use super::{Violation, violation};

/// At any time.
pub(crate) fn credit_within_pool(account: &CreditAccount) -> Result<(), Violation> {
    if account.peak <= account.capacity && account.held_by_entries <= account.used {
        return Ok(());
    }
    Err(violation(
        "credit",
        format!("more was taken than there is: {account:?}"),
    ))
}

/// Three quarters of the pool are taken, or were at some time.
pub(crate) fn is_pressed(account: &CreditAccount) -> bool {
    account.peak.saturating_mul(4) >= account.capacity.saturating_mul(3)
}

/// While no request and no query is under way: the entries hold all that is taken, and no more than they need.
pub(crate) fn credit_is_held_by_entries(account: &CreditAccount) -> Result<(), Violation> {
    credit_within_pool(account)?;
    if account.used == account.held_by_entries && account.held_by_entries <= account.entry_bytes {
        return Ok(());
    }
    Err(violation(
        "credit",
        format!("credit did not come back: {account:?}"),
    ))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn credit_that_nobody_holds_is_found() {
        let sound = CreditAccount {
            capacity: 100,
            peak: 90,
            used: 40,
            held_by_entries: 40,
            entry_bytes: 45,
        };
        assert_eq!(credit_is_held_by_entries(&sound), Ok(()));
        let leaked = CreditAccount { used: 41, ..sound };
        assert_eq!(credit_within_pool(&leaked), Ok(()));
        assert!(credit_is_held_by_entries(&leaked).is_err());
        let too_much = CreditAccount { peak: 101, ..sound };
        assert!(credit_within_pool(&too_much).is_err());
    }
}
