//! Whom a worker runs as: its user, its group and, as for a login, all other groups of that user.

use std::ffi::CString;
use std::io;

use nix::unistd::{self, User};
use rustix::process::{Gid, Uid};

use crate::sys::Identity;

pub(super) struct Account {
    /// Absent where homing's own is meant.
    pub(super) user: Option<User>,
    /// Absent when nothing changes, so that no privilege is needed.
    pub(super) identity: Option<Identity>,
}

/// Why a worker cannot run as this user or group. Whole clauses, to be put after the name of the app.
#[derive(Debug, thiserror::Error)]
pub enum AccountError {
    #[error("there is no user `{0}` on this machine; create it, or correct `user`")]
    UnknownUser(String),
    #[error("there is no group `{0}` on this machine; create it, or correct `group`")]
    UnknownGroup(String),
    #[error("user or group `{name}` cannot be looked up: {source}; correct it, or the machine's user database")]
    Lookup { name: String, source: io::Error },
    #[error("homing may not start workers as {who}; run homing as root, or remove `{key}`")]
    Refused { who: String, key: &'static str },
}

pub(super) fn find(user: Option<&str>, group: Option<&str>) -> Result<Account, AccountError> {
    let Some((account, group)) = look_up(user, group)? else { return Ok(Account { user: None, identity: None }) };
    let euid = unistd::geteuid();
    let is_same = account.uid == euid && group.is_none_or(|gid| gid == unistd::getegid());
    let named = user.is_some().then(|| account.clone());
    if is_same && !euid.is_root() {
        return Ok(Account { user: named, identity: None });
    }
    let gid = group.unwrap_or(account.gid);
    let lookup_error = |errno: nix::Error| AccountError::Lookup { name: account.name.clone(), source: errno.into() };
    let name = CString::new(account.name.as_str()).map_err(|_| lookup_error(nix::Error::EINVAL))?;
    let groups = unistd::getgrouplist(&name, gid).map_err(lookup_error)?;
    let identity = Identity {
        uid: Uid::from_raw(account.uid.as_raw()),
        gid: Gid::from_raw(gid.as_raw()),
        groups: groups.into_iter().map(|group| Gid::from_raw(group.as_raw())).collect(),
    };
    Ok(Account { user: named, identity: Some(identity) })
}

/// The user, homing's own where none is named, and the group named; nothing where neither is.
fn look_up(user: Option<&str>, group: Option<&str>) -> Result<Option<(User, Option<unistd::Gid>)>, AccountError> {
    if user.is_none() && group.is_none() {
        return Ok(None);
    }
    let failed = |name: &str| {
        let name = name.to_owned();
        move |errno: nix::Error| AccountError::Lookup { name, source: errno.into() }
    };
    let account = match user {
        Some(name) => {
            User::from_name(name).map_err(failed(name))?.ok_or_else(|| AccountError::UnknownUser(name.to_owned()))?
        }
        None => User::from_uid(unistd::geteuid())
            .map_err(failed("homing's own"))?
            .ok_or_else(|| AccountError::UnknownUser(unistd::geteuid().to_string()))?,
    };
    let group = match group {
        Some(name) => {
            let found = unistd::Group::from_name(name).map_err(failed(name))?;
            Some(found.ok_or_else(|| AccountError::UnknownGroup(name.to_owned()))?.gid)
        }
        None => None,
    };
    Ok(Some((account, group)))
}

/// The kernel did not let homing change.
pub(super) fn refusal(user: Option<&str>, group: Option<&str>) -> AccountError {
    match (user, group) {
        (Some(user), Some(group)) => {
            AccountError::Refused { who: format!("user `{user}` and group `{group}`"), key: "user` and `group" }
        }
        (None, Some(group)) => AccountError::Refused { who: format!("group `{group}`"), key: "group" },
        (user, None) => AccountError::Refused { who: format!("user `{}`", user.unwrap_or_default()), key: "user" },
    }
}
