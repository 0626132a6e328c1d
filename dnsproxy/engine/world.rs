//! The cluster as the engine sees it: typed, already checked.
