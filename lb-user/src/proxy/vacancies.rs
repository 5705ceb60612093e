//! Room that is given back at workers.

use futures_util::future::select_all;

use crate::routing::Load;
use crate::sync::Arc;

/// Room at an app's workers, told when it is given back for as long as this lives. One at a time for each app.
pub struct Vacancies(Vec<Arc<Load>>);

impl Vacancies {
    pub fn watch<'a>(loads: impl Iterator<Item = &'a Arc<Load>>) -> Self {
        let loads = Self(loads.map(Arc::clone).collect());
        loads.0.iter().for_each(|load| load.open.watch());
        loads
    }

    /// Completes when a worker has one request or tunnel less than a moment ago.
    pub async fn one(&self) {
        match self.0.as_slice() {
            [] => std::future::pending().await,
            loads => drop(select_all(loads.iter().map(|load| Box::pin(load.open.fewer()))).await),
        }
    }
}

impl Drop for Vacancies {
    fn drop(&mut self) {
        self.0.iter().for_each(|load| load.open.unwatch());
    }
}
