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
        let own = kept.join(folder.file_name().unwrap_or_default());
        fs::create_dir_all(&own)?;
        for entry in fs::read_dir(folder).with_context(|| format!("read {}", folder.display()))? {
            let log = entry?.path();
            if let (Some("log"), Some(name)) =
                (log.extension().and_then(|e| e.to_str()), log.file_name())
            {
                fs::copy(&log, own.join(name))
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
    fn only_logs_are_kept_each_by_its_folder() -> Result<()> {
        let folder = tempfile::tempdir()?;
        let nodes = ["node-1", "node-2"].map(|node| folder.path().join(node));
        for node in &nodes {
            fs::create_dir(node)?;
            fs::write(node.join("lb.log"), format!("of {}", node.display()))?;
            fs::write(node.join("data"), "much")?;
        }
        let kept = keep_logs(nodes.iter().map(PathBuf::as_path))?;
        for node in &nodes {
            let own = kept.join(node.file_name().unwrap_or_default());
            let names = fs::read_dir(&own)?.map(|entry| Ok(entry?.file_name()));
            assert_eq!(names.collect::<Result<Vec<_>>>()?, ["lb.log"]);
            let text = fs::read_to_string(own.join("lb.log"))?;
            assert_eq!(text, format!("of {}", node.display()));
        }
        fs::remove_dir_all(&kept)?;
        Ok(())
    }
}
