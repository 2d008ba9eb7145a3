//! Every object key of the program, made in this one place.
//!
//! Numbers that are listed in order are written with leading zeroes, so that the order of names is the order of numbers.

use std::fmt;

use clonegate_core::ids::{
    BaseId, CloneId, Epoch, GatewayId, IdentityId, IndexId, JobId, Name, Nonce, PackId, Sequence,
};
use clonegate_core::{Error, Result};
use object_store::path::Path;

/// The name of one object within a store.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Key(Path);

/// A directory of objects within a store: everything below it.
#[derive(Clone, PartialEq, Eq, Hash)]
pub struct Prefix(Path);

impl Key {
    pub(super) const fn path(&self) -> &Path {
        &self.0
    }

    /// The text, without a leading slash.
    pub fn as_str(&self) -> &str {
        self.0.as_ref()
    }
}

impl Prefix {
    pub(super) const fn path(&self) -> &Path {
        &self.0
    }

    /// The text, without a slash at either end.
    pub fn as_str(&self) -> &str {
        self.0.as_ref()
    }

    /// The object of this relative name below the prefix, as [`super::Store::list`] gives it.
    ///
    /// # Errors
    /// `Invalid` with code `bad-key`.
    pub fn key(&self, relative: &str) -> Result<Key> {
        foreign(&format!("{}/{relative}", self.0))
    }
}

impl fmt::Display for Key {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

impl fmt::Debug for Key {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

impl fmt::Display for Prefix {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/", self.as_str())
    }
}

impl fmt::Debug for Prefix {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/", self.as_str())
    }
}

/// `text` consists of ids, checked names, numbers and words of this module, so it needs no escaping.
fn path(text: String) -> Path {
    Path::from(text)
}

fn key(text: String) -> Key {
    Key(path(text))
}

fn prefix(text: String) -> Prefix {
    Prefix(path(text))
}

/// Somebody else's object (a raw image by reference), under the name that they gave it.
///
/// # Errors
/// `Invalid` with code `bad-key` when it is empty, holds an empty, `.` or `..` part, or a character that the stores do
/// not agree on.
pub fn foreign(text: &str) -> Result<Key> {
    let wrong = |why: String| Error::invalid("bad-key", format!("not usable as the name of an object: {why}")).on(text);
    let path = Path::parse(text.trim_start_matches('/')).map_err(|e| wrong(e.to_string()))?;
    if path.as_ref().is_empty() {
        return Err(wrong("it is empty".to_owned()));
    }
    Ok(Key(path))
}

/// Everything in the store.
pub fn all() -> Prefix {
    prefix(String::new())
}

/// `packs/<pack>`: chunk frames.
pub fn pack(pack: PackId) -> Key {
    key(format!("packs/{pack}"))
}

/// `packs/`.
pub fn packs() -> Prefix {
    prefix("packs".to_owned())
}

/// `indexes/<index>`: where the chunks of an image are.
pub fn index(index: IndexId) -> Key {
    key(format!("indexes/{index}"))
}

/// `indexes/`.
pub fn indexes() -> Prefix {
    prefix("indexes".to_owned())
}

/// `making/<id>/<n>`: an image is being made whose packs no index names yet.
pub fn making(id: IndexId, n: u64) -> Key {
    key(format!("making/{id}/{n:08}"))
}

/// `making/<id>/`.
pub fn making_dir(id: IndexId) -> Prefix {
    prefix(format!("making/{id}"))
}

/// `making/`.
pub fn makings() -> Prefix {
    prefix("making".to_owned())
}

/// `bases/`.
pub fn bases() -> Prefix {
    prefix("bases".to_owned())
}

/// `bases/<base>/`: all that belongs to one base.
pub fn base_dir(base: BaseId) -> Prefix {
    prefix(format!("bases/{base}"))
}

/// `bases/<base>/base`: the base record; it makes the base exist.
pub fn base(base: BaseId) -> Key {
    key(format!("bases/{base}/base"))
}

/// `bases/<base>/bootset/<n>`: the ordered first-touch list; the newest wins.
pub fn boot_set(base: BaseId, n: u64) -> Key {
    key(format!("bases/{base}/bootset/{n:020}"))
}

/// `bases/<base>/bootset/`.
pub fn boot_sets(base: BaseId) -> Prefix {
    prefix(format!("bases/{base}/bootset"))
}

/// `bases/<base>/slots/<n>`: the clone record of the clone in slot `n`.
pub fn slot(base: BaseId, n: u32) -> Key {
    key(format!("bases/{base}/slots/{n:04}"))
}

/// `bases/<base>/slots/`.
pub fn slots(base: BaseId) -> Prefix {
    prefix(format!("bases/{base}/slots"))
}

/// `bases/<base>/retired`: no new clone may link to the base.
pub fn retired(base: BaseId) -> Key {
    key(format!("bases/{base}/retired"))
}

/// `clones/`.
pub fn clones() -> Prefix {
    prefix("clones".to_owned())
}

/// `clones/<clone>/`: all that belongs to one volume.
pub fn clone_dir(clone: CloneId) -> Prefix {
    prefix(format!("clones/{clone}"))
}

/// `clones/<clone>/clone`: the record of a volume without a base.
pub fn clone(clone: CloneId) -> Key {
    key(format!("clones/{clone}/clone"))
}

/// `clones/<clone>/deleted`: tombstone of the volume.
pub fn deleted(clone: CloneId) -> Key {
    key(format!("clones/{clone}/deleted"))
}

/// The number that a part of the name of a clone's object says, when it is written as it is here: twenty digits.
pub fn number(text: &str) -> Option<u64> {
    let digits = text.len() == 20 && text.bytes().all(|byte| byte.is_ascii_digit());
    if digits { text.parse().ok() } else { None }
}

/// `clones/<clone>/epoch/<e>`: ownership claim.
pub fn epoch(clone: CloneId, epoch: Epoch) -> Key {
    key(format!("clones/{clone}/epoch/{:020}", epoch.0))
}

/// `clones/<clone>/epoch/`.
pub fn epochs(clone: CloneId) -> Prefix {
    prefix(format!("clones/{clone}/epoch"))
}

/// `clones/<clone>/log/<e>/<seq>`: commit record.
pub fn log(clone: CloneId, epoch: Epoch, sequence: Sequence) -> Key {
    key(format!("clones/{clone}/log/{:020}/{:020}", epoch.0, sequence.0))
}

/// `clones/<clone>/log/<e>/`.
pub fn log_epoch(clone: CloneId, epoch: Epoch) -> Prefix {
    prefix(format!("clones/{clone}/log/{:020}", epoch.0))
}

/// `clones/<clone>/log/`.
pub fn logs(clone: CloneId) -> Prefix {
    prefix(format!("clones/{clone}/log"))
}

/// `clones/<clone>/seg/<e>/<n>`: folded data.
pub fn segment(clone: CloneId, epoch: Epoch, n: u64) -> Key {
    key(format!("clones/{clone}/seg/{:020}/{n:020}", epoch.0))
}

/// `clones/<clone>/seg/`.
pub fn segments(clone: CloneId) -> Prefix {
    prefix(format!("clones/{clone}/seg"))
}

/// `clones/<clone>/ckpt/<e>/<seq>`: delta map after that commit.
pub fn checkpoint(clone: CloneId, epoch: Epoch, sequence: Sequence) -> Key {
    key(format!("clones/{clone}/ckpt/{:020}/{:020}", epoch.0, sequence.0))
}

/// `clones/<clone>/ckpt/`.
pub fn checkpoints(clone: CloneId) -> Prefix {
    prefix(format!("clones/{clone}/ckpt"))
}

/// `identities/<identity>` in the home: an identity record. In the home, because an identity outlives what happens to the clone's volume.
pub fn identity(identity: IdentityId) -> Key {
    key(format!("identities/{identity}"))
}

/// `identities/`.
pub fn identities() -> Prefix {
    prefix("identities".to_owned())
}

/// `catalog/<noun>/<name>.<n>`: state number `n` of what is called `name`. `noun` is a word of the program, not of a user.
pub fn catalog(noun: &str, name: &Name, n: u64) -> Key {
    key(format!("catalog/{noun}/{name}.{n}"))
}

/// `catalog/<noun>/`.
pub fn catalog_prefix(noun: &str) -> Prefix {
    prefix(format!("catalog/{noun}"))
}

/// `jobs/<job>/<n>`: state number `n` of a job.
pub fn job(job: JobId, n: u64) -> Key {
    key(format!("jobs/{job}/{n:08}"))
}

/// `jobs/<job>/`: all states of a job.
pub fn job_dir(job: JobId) -> Prefix {
    prefix(format!("jobs/{job}"))
}

/// `jobs/`.
pub fn jobs() -> Prefix {
    prefix("jobs".to_owned())
}

/// `audit/<day>/<…>`: entries that one gateway noted together; names ascend with time.
pub fn audit(day: u64, ms: u64, gateway: GatewayId, nonce: Nonce) -> Key {
    let unique = u128::from_be_bytes(nonce.0);
    key(format!("audit/{day:05}/{ms:020}-{gateway}-{unique:032x}"))
}

/// `audit/<day>/`: the entries of one day, counted from 1970 UTC.
pub fn audit_day(day: u64) -> Prefix {
    prefix(format!("audit/{day:05}"))
}

/// `audit/`.
pub fn audits() -> Prefix {
    prefix("audit".to_owned())
}

/// `exclusive`: who owns a datastore that is marked exclusive.
pub fn exclusive() -> Key {
    key("exclusive".to_owned())
}

/// `probe/<gateway>/<part>`: objects of the start-up probe. `part` is a word of the program and may hold slashes.
pub fn probe(gateway: GatewayId, part: &str) -> Key {
    key(format!("probe/{gateway}/{part}"))
}

/// `probe/<gateway>/<part>/`.
pub fn probe_prefix(gateway: GatewayId, part: &str) -> Prefix {
    prefix(format!("probe/{gateway}/{part}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keys_are_what_the_format_page_says() {
        let base_id = BaseId::from_bytes([0; 16]);
        let clone_id = CloneId::from_bytes([0; 16]);
        assert_eq!(slot(base_id, 7).as_str(), "bases/b_00000000000000000000000000/slots/0007");
        assert_eq!(
            log(clone_id, Epoch(2), Sequence(31)).as_str(),
            "clones/c_00000000000000000000000000/log/00000000000000000002/00000000000000000031"
        );
        assert_eq!(catalog("clone", &Name::new("win.11").unwrap(), 3).as_str(), "catalog/clone/win.11.3");
        assert_eq!(all().as_str(), "");
    }

    #[test]
    fn a_number_in_a_name_is_read_only_as_it_is_written() {
        assert_eq!(number("00000000000000000031"), Some(31));
        assert_eq!(number("18446744073709551615"), Some(u64::MAX));
        for bad in
            ["", "31", "+0000000000000000031", "000000000000000000031", "0000000000000000003x", "99999999999999999999"]
        {
            assert_eq!(number(bad), None, "{bad:?}");
        }
    }

    #[test]
    fn a_foreign_name_is_checked() {
        assert_eq!(foreign("/images/win 11.raw").unwrap().as_str(), "images/win 11.raw");
        for bad in ["", "/", "a//b", "a/../b", "a/./b"] {
            assert_eq!(foreign(bad).unwrap_err().code(), "bad-key", "{bad:?}");
        }
    }

    #[test]
    fn a_listed_name_leads_back_to_its_key() {
        let base_id = BaseId::from_bytes([9; 16]);
        assert_eq!(slots(base_id).key("0012").unwrap(), slot(base_id, 12));
    }
}
