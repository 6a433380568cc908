//! The rows of one kind, kept in step with a list and a watch.

use std::collections::BTreeMap;

use super::{Event, ObjectKey, Row};

/// The rows of one kind.
///
/// A list is buffered until it is complete, so that an interrupted one changes nothing. An object
/// that has neither a value nor a problem takes no room.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Table<R> {
    live: BTreeMap<ObjectKey, Row<R>>,
    listing: Option<BTreeMap<ObjectKey, Row<R>>>,
    synced: bool,
}

/// A key whose value or problems are no longer what they were.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Changed<R> {
    pub key: ObjectKey,
    /// The value until now; the new one stands in the table.
    pub was: Option<R>,
}

impl<R> Default for Table<R> {
    fn default() -> Self {
        Self {
            live: BTreeMap::new(),
            listing: None,
            synced: false,
        }
    }
}

impl<R: PartialEq> Table<R> {
    /// Takes in one event and returns what differs by it, not counting versions: a write that
    /// touches only what we do not read changes nothing.
    pub fn apply(&mut self, event: Event<R>) -> Vec<Changed<R>> {
        match event {
            Event::Init => {
                self.listing = Some(BTreeMap::new());
                Vec::new()
            }
            Event::InitApply(key, row) => {
                if let Some(listing) = &mut self.listing {
                    store(listing, key, Some(row));
                }
                Vec::new()
            }
            Event::InitDone => self.replace(),
            Event::Apply(key, row) => self.set(key, Some(row)),
            Event::Delete(key) => self.set(key, None),
        }
    }

    /// Whether a list has been completed.
    pub fn synced(&self) -> bool {
        self.synced
    }

    pub fn get(&self, key: &ObjectKey) -> Option<&R> {
        self.live.get(key)?.value.as_ref()
    }

    pub fn row(&self, key: &ObjectKey) -> Option<&Row<R>> {
        self.live.get(key)
    }

    pub fn rows(&self) -> impl Iterator<Item = (&ObjectKey, &Row<R>)> {
        self.live.iter()
    }

    pub fn values(&self) -> impl Iterator<Item = (&ObjectKey, &R)> {
        self.live
            .iter()
            .filter_map(|(key, row)| Some((key, row.value.as_ref()?)))
    }

    /// The values whose keys are in a namespace.
    pub fn in_namespace<'a>(
        &'a self,
        namespace: &'a str,
    ) -> impl Iterator<Item = (&'a ObjectKey, &'a R)> {
        self.live
            .range(ObjectKey::new(namespace, "")..)
            .take_while(move |(key, _)| key.namespace == namespace)
            .filter_map(|(key, row)| Some((key, row.value.as_ref()?)))
    }

    fn set(&mut self, key: ObjectKey, row: Option<Row<R>>) -> Vec<Changed<R>> {
        let was = store(&mut self.live, key.clone(), row);
        if is_same(was.as_ref(), self.live.get(&key)) {
            return Vec::new();
        }
        vec![Changed {
            key,
            was: was.and_then(|row| row.value),
        }]
    }

    fn replace(&mut self) -> Vec<Changed<R>> {
        let Some(listed) = self.listing.take() else {
            return Vec::new();
        };
        self.synced = true;
        let mut old = std::mem::replace(&mut self.live, listed);
        let mut changed = Vec::new();
        for (key, row) in &self.live {
            let was = old.remove(key);
            if !is_same(was.as_ref(), Some(row)) {
                changed.push(Changed {
                    key: key.clone(),
                    was: was.and_then(|row| row.value),
                });
            }
        }
        changed.extend(old.into_iter().map(|(key, row)| Changed {
            key,
            was: row.value,
        }));
        changed
    }
}

fn store<R>(
    rows: &mut BTreeMap<ObjectKey, Row<R>>,
    key: ObjectKey,
    row: Option<Row<R>>,
) -> Option<Row<R>> {
    match row.filter(|row| row.value.is_some() || !row.problems.is_empty()) {
        Some(row) => rows.insert(key, row),
        None => rows.remove(&key),
    }
}

fn is_same<R: PartialEq>(was: Option<&Row<R>>, is: Option<&Row<R>>) -> bool {
    match (was, is) {
        (Some(was), Some(is)) => was.value == is.value && was.problems == is.problems,
        (None, None) => true,
        (Some(_), None) | (None, Some(_)) => false,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn key() -> ObjectKey {
        ObjectKey::new("default", "a")
    }

    fn row(value: Option<u8>, version: &str, problems: &[&str]) -> Row<u8> {
        Row {
            value,
            version: version.into(),
            problems: problems.iter().map(|&text| text.into()).collect(),
        }
    }

    fn changed(was: Option<u8>) -> Vec<Changed<u8>> {
        vec![Changed { key: key(), was }]
    }

    #[test]
    fn a_version_alone_is_no_change() {
        let mut table = Table::default();
        assert_eq!(
            table.apply(Event::Apply(key(), row(Some(1), "1", &[]))),
            changed(None)
        );
        assert_eq!(table.apply(Event::Apply(key(), row(Some(1), "2", &[]))), []);
        assert_eq!(table.row(&key()).map(|row| row.version.as_str()), Some("2"));
        assert_eq!(
            table.apply(Event::Apply(key(), row(Some(2), "3", &[]))),
            changed(Some(1))
        );
        assert_eq!(
            table.apply(Event::Apply(key(), row(Some(2), "4", &["x"]))),
            changed(Some(2))
        );
    }

    #[test]
    fn a_row_of_nothing_is_no_row() {
        let mut table = Table::default();
        assert_eq!(table.apply(Event::Apply(key(), row(None, "1", &[]))), []);
        assert_eq!(table.rows().count(), 0);
        table.apply(Event::Apply(key(), row(Some(1), "2", &[])));
        assert_eq!(
            table.apply(Event::Apply(key(), row(None, "3", &[]))),
            changed(Some(1))
        );
        assert_eq!(table.apply(Event::Delete(key())), []);
        assert_eq!(table.rows().count(), 0);
    }

    #[test]
    fn a_list_counts_when_it_is_complete() {
        let mut table = Table::default();
        table.apply(Event::Apply(key(), row(Some(1), "1", &[])));
        assert_eq!(table.apply(Event::Init), []);
        assert_eq!(table.get(&key()), Some(&1));
        assert!(!table.synced());
        assert_eq!(table.apply(Event::InitDone), changed(Some(1)));
        assert_eq!(table.get(&key()), None);
        assert!(table.synced());
    }

    #[test]
    fn the_end_of_a_list_that_never_began_is_nothing() {
        let mut table = Table::default();
        table.apply(Event::Apply(key(), row(Some(1), "1", &[])));
        assert_eq!(
            table.apply(Event::InitApply(key(), row(Some(2), "2", &[]))),
            []
        );
        assert_eq!(table.apply(Event::InitDone), []);
        assert_eq!(table.get(&key()), Some(&1));
        assert!(!table.synced());
    }
}
