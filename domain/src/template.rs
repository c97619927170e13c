//! A named spec that nodes prepare: booted once, saved, and from then on a create from it is a restore.
//!
//! ```text
//!   on each node:      ask              begun            saved
//!          Missing ---------> Asked ----------> Preparing ------> Prepared
//!             ^                 |                   |
//!             |  after a while  |  fail             |  fail
//!             +---------------- Failed <------------+
//! ```
//!
//! Where a template is not prepared a create from it boots as any other: it is slower, never wrong. Each node prepares
//! its own, so that no saved machine meets another CPU.

use crate::ids::{RequestId, TemplateId, TenantId};
use crate::reason::Cause;
use crate::resources::Resources;
use crate::snapshot::SnapshotSizes;
use crate::spec::{SandboxSpec, SpecError, check_environment};
use crate::time::Timestamp;
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;

/// How far one node is with one template, as the node says it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Preparation {
    Preparing,
    Prepared,
    Failed,
}

impl Preparation {
    pub const ALL: [Self; 3] = [Self::Preparing, Self::Prepared, Self::Failed];

    pub fn as_str(self) -> &'static str {
        match self {
            Self::Preparing => "preparing",
            Self::Prepared => "prepared",
            Self::Failed => "failed",
        }
    }
}

/// What the control plane keeps of a template. It never changes: another content is another template.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Template {
    pub id: TemplateId,
    pub tenant: TenantId,
    pub request_id: RequestId,
    /// unique among the templates of a tenant
    pub name: String,
    pub image: String,
    /// `None`: the node's default kernel
    pub kernel: Option<String>,
    pub resources: Resources,
    pub environment: BTreeMap<String, String>,
    pub created_at: Timestamp,
}

impl Template {
    /// The spec that a node boots to prepare it.
    pub fn spec(&self) -> SandboxSpec {
        SandboxSpec {
            name: self.name.clone(),
            image: self.image.clone(),
            kernel: self.kernel.clone(),
            resources: self.resources,
            environment: self.environment.clone(),
            ..SandboxSpec::default()
        }
    }

    /// The same content, whoever asked for it and when.
    pub fn is_same(&self, other: &Self) -> bool {
        (&self.name, &self.image, &self.kernel, &self.resources, &self.environment)
            == (&other.name, &other.image, &other.kernel, &other.resources, &other.environment)
    }

    /// Checks every bound of a spec; the name must be there.
    pub fn validate(&self) -> Result<(), SpecError> {
        crate::ids::check_name("name", &self.name)?;
        check_environment("environment", &self.environment)?;
        self.spec().validate()
    }
}

/// What one node has of one template.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct TemplateReport {
    pub template_id: TemplateId,
    pub preparation: Preparation,
    /// always there when it failed
    pub cause: Option<Cause>,
    /// zero until it is prepared
    pub sizes: SnapshotSizes,
}
