//! Logs of what runs in folders that go.

use std::{
    fs,
    path::{Path, PathBuf},
};

use anyhow::{Context as _, Result};

/// Copies the logs (`*.log`) of these folders to a folder that stays, and returns it.
pub fn keep_logs<'a>(folders: impl IntoIterator<Item = &'a Path>) -> Result<PathBuf> {
    let kept = tempfile::Builder::new()
        .prefix("lb-logs-")
        .tempdir()?
        .keep();
    for folder in folders {
        for entry in fs::read_dir(folder).with_context(|| format!("read {}", folder.display()))? {
            let log = entry?.path();
            if let (Some("log"), Some(name)) =
                (log.extension().and_then(|e| e.to_str()), log.file_name())
            {
                fs::copy(&log, kept.join(name))
                    .with_context(|| format!("keep {}", log.display()))?;
            }
        }
    }
    Ok(kept)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_logs_are_kept() -> Result<()> {
        let folder = tempfile::tempdir()?;
        fs::write(folder.path().join("a.log"), "a line")?;
        fs::write(folder.path().join("data"), "much")?;
        let kept = keep_logs([folder.path()])?;
        let found = fs::read_dir(&kept)?.count();
        let text = fs::read_to_string(kept.join("a.log"))?;
        fs::remove_dir_all(&kept)?;
        assert_eq!((found, text.as_str()), (1, "a line"));
        Ok(())
    }
}
