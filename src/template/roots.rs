//! The roots of many jails at once: what is the same for all jails of one template is worked out
//! for the first of them.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, PoisonError};

use serde_json::Value;

use super::{Template, chain, host_usr, layers_of, refuse_host_owned, render_all};
use crate::desired::{DesiredRoot, Layer};
use crate::diagnostic::Diagnostic;
use crate::etc;
use crate::jail::Jail;

/// All templates, and the layers of those that were asked for.
pub struct Roots<'t> {
    templates: &'t BTreeMap<String, Template>,
    layers: Mutex<BTreeMap<&'t str, Arc<[Layer]>>>,
}

impl<'t> Roots<'t> {
    pub fn new(templates: &'t BTreeMap<String, Template>) -> Self {
        Self { templates, layers: Mutex::default() }
    }

    /// The root that `jail` wants: layers topmost first, and its own files rendered with
    /// `variables`, which are made only for a template that speaks of them.
    pub fn root(
        &self,
        jail: &Jail,
        variables: impl FnOnce() -> Value,
    ) -> Result<DesiredRoot, Vec<Diagnostic>> {
        let Some(name) = &jail.template else {
            return Ok(DesiredRoot { etc: etc::wanted(jail, |_| false), ..DesiredRoot::default() });
        };
        let chain = chain(self.templates, name).map_err(|wrong| vec![*wrong])?;
        let host_usr = host_usr(&chain);
        let speaks = chain.iter().any(|template| template.rendered.iter().any(|file| file.is_expression));
        let files = render_all(&chain, &if speaks { variables() } else { Value::Null })?;
        if host_usr {
            refuse_host_owned(&chain)?;
        }
        let etc = etc::wanted(jail, |target| chain.iter().any(|template| template.lays(target)));
        Ok(DesiredRoot { layers: self.layers(&chain).to_vec(), host_usr, files, etc })
    }

    /// Their names are digests, dear to make.
    fn layers(&self, chain: &[&'t Template]) -> Arc<[Layer]> {
        let Some(first) = chain.first() else { return Arc::new([]) };
        let mut known = self.layers.lock().unwrap_or_else(PoisonError::into_inner);
        let all = || layers_of(chain).into();
        Arc::clone(known.entry(first.name.as_str()).or_insert_with(all))
    }
}
