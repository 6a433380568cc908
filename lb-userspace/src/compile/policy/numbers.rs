//! Numbers that stay what they are.

use std::collections::BTreeMap;

use lb_common::policy::CLOSED;

/// A number for each value that is in use, the same for as long as it is. One that was freed is not
/// given again until all others have been.
#[derive(Clone, Debug)]
pub struct Numbers<T> {
    numbers: BTreeMap<T, u32>,
    values: BTreeMap<u32, Numbered<T>>,
    last: u32,
}

#[derive(Clone, Debug)]
struct Numbered<T> {
    value: T,
    users: usize,
}

impl<T: Ord + Clone> Numbers<T> {
    /// The numbers that are given are above `last`, as long as there are such.
    pub fn above(last: u32) -> Self {
        Self {
            numbers: BTreeMap::new(),
            values: BTreeMap::new(),
            last,
        }
    }

    /// One more user of the value, and whether it is the first.
    pub fn take(&mut self, value: &T) -> (u32, bool) {
        if let Some(&number) = self.numbers.get(value) {
            if let Some(numbered) = self.values.get_mut(&number) {
                numbered.users += 1;
            }
            return (number, false);
        }
        let number = self.unused();
        self.numbers.insert(value.clone(), number);
        let value = value.clone();
        self.values.insert(number, Numbered { value, users: 1 });
        (number, true)
    }

    /// One user less; the value, where it was the last one.
    pub fn release(&mut self, number: u32) -> Option<T> {
        let numbered = self.values.get_mut(&number)?;
        numbered.users -= 1;
        if numbered.users > 0 {
            return None;
        }
        let Numbered { value, .. } = self.values.remove(&number)?;
        self.numbers.remove(&value);
        Some(value)
    }

    /// Gives the number of one value to another that has none.
    pub fn rename(&mut self, number: u32, value: T) {
        if let Some(numbered) = self.values.get_mut(&number) {
            self.numbers.remove(&numbered.value);
            self.numbers.insert(value.clone(), number);
            numbered.value = value;
        }
    }

    pub fn number(&self, value: &T) -> Option<u32> {
        self.numbers.get(value).copied()
    }

    pub fn value(&self, number: u32) -> Option<&T> {
        self.values.get(&number).map(|numbered| &numbered.value)
    }

    pub fn users(&self, number: u32) -> usize {
        self.values
            .get(&number)
            .map_or(0, |numbered| numbered.users)
    }

    pub fn iter(&self) -> impl Iterator<Item = (u32, &T)> {
        let values = self.values.iter();
        values.map(|(number, numbered)| (*number, &numbered.value))
    }

    /// A number that means nothing yet: neither 0 nor [`CLOSED`].
    fn unused(&mut self) -> u32 {
        loop {
            self.last = self.last.wrapping_add(1);
            let reserved = self.last == 0 || self.last == CLOSED;
            if !reserved && !self.values.contains_key(&self.last) {
                return self.last;
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_value_keeps_its_number_while_it_has_users() {
        let mut numbers = Numbers::above(0);
        assert_eq!(numbers.take(&'a'), (1, true));
        assert_eq!(numbers.take(&'b'), (2, true));
        assert_eq!(numbers.take(&'a'), (1, false));
        assert_eq!(numbers.release(1), None);
        assert_eq!(numbers.users(1), 1);
        assert_eq!(numbers.release(1), Some('a'));
        assert_eq!((numbers.number(&'a'), numbers.value(1)), (None, None));
        assert_eq!(numbers.take(&'a'), (3, true), "freed numbers rest");
    }

    #[test]
    fn numbers_go_round_without_those_that_mean_something() {
        let mut numbers = Numbers::above(CLOSED - 2);
        assert_eq!(numbers.take(&'a').0, CLOSED - 1);
        assert_eq!(numbers.take(&'b').0, 1);
        numbers.last = CLOSED - 2;
        assert_eq!(numbers.take(&'c').0, 2);
    }

    #[test]
    fn a_number_may_be_given_another_value() {
        let mut numbers = Numbers::above(0);
        numbers.take(&'a');
        numbers.rename(1, 'b');
        assert_eq!(
            (numbers.number(&'a'), numbers.number(&'b')),
            (None, Some(1))
        );
        assert_eq!(numbers.value(1), Some(&'b'));
    }
}
