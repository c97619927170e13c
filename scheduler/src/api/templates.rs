//! `TemplateService`. Templates are read from the engine itself, through the driver: how far the fleet is with each is not
//! stored.

use super::sandboxes::request_id;
use super::{deadline, pages, status};
use crate::driver::DriverHandle;
use pinfold_domain::ids::check_name;
use pinfold_domain::{Cause, Reason, TenantId};
use pinfold_engine::TemplateStatus;
use pinfold_proto::api::v1 as wire;
use pinfold_proto::api::v1::template_service_server::TemplateService;
use pinfold_proto::convert::sandbox::cause_to_wire;
use pinfold_proto::convert::snapshot::template_to_wire;
use pinfold_proto::convert::{WireError, spec};
use std::time::Duration;
use tonic::{Request, Response, Status};

pub struct TemplateApi {
    pub driver: DriverHandle,
    pub call_timeout: Duration,
}

#[tonic::async_trait]
impl TemplateService for TemplateApi {
    async fn create_template(
        &self,
        request: Request<wire::CreateTemplateRequest>,
    ) -> Result<Response<wire::CreateTemplateResponse>, Status> {
        let deadline = deadline::of(request.metadata());
        let request = request.into_inner();
        let request_id = request_id(&request.request_id).map_err(status::refuse)?;
        let spec = spec::template_from_wire(&request.name, request.spec).map_err(status::refuse)?;
        let create = async {
            let created = self.driver.create_template(TenantId::default(), request_id, spec).await;
            let created = created.map_err(status::rejected)?;
            // with the nodes that were asked in the same step
            let status = self.driver.get_template(TenantId::default(), created.name.clone()).await;
            let status = status.map_err(status::refuse)?.filter(|status| status.template.id == created.id);
            Ok(status.map_or_else(|| template_to_wire(&created), |status| to_wire(&status)))
        };
        let template = deadline::within(deadline, self.call_timeout, create).await?;
        Ok(Response::new(wire::CreateTemplateResponse { template: Some(template) }))
    }

    async fn get_template(
        &self,
        request: Request<wire::GetTemplateRequest>,
    ) -> Result<Response<wire::GetTemplateResponse>, Status> {
        let deadline = deadline::of(request.metadata());
        let name = named(request.into_inner().name).map_err(status::refuse)?;
        let get = async {
            let found = self.driver.get_template(TenantId::default(), name.clone()).await;
            let message = format!("there is no template {name:?}");
            let not_found = || Cause::new(Reason::TemplateNotFound, message);
            found.map_err(status::refuse)?.ok_or_else(|| status::refuse(not_found()))
        };
        let found = deadline::within(deadline, self.call_timeout, get).await?;
        Ok(Response::new(wire::GetTemplateResponse { template: Some(to_wire(&found)) }))
    }

    async fn list_templates(
        &self,
        request: Request<wire::ListTemplatesRequest>,
    ) -> Result<Response<wire::ListTemplatesResponse>, Status> {
        let deadline = deadline::of(request.metadata());
        let request = request.into_inner();
        let size = pages::size(request.page_size).map_err(status::refuse)?;
        let after = page_token(request.page_token).map_err(status::refuse)?;
        // one more than asked for tells whether there is a next page
        let list = async {
            let found = self.driver.list_templates(TenantId::default(), after, size + 1).await;
            found.map_err(status::refuse)
        };
        let mut found = deadline::within(deadline, self.call_timeout, list).await?;
        let more = found.len() > size;
        found.truncate(size);
        let (templates, cut) = pages::fit(found.iter().map(to_wire));
        let last = templates.last().filter(|_| more || cut);
        let next_page_token = last.map(|template| template.name.clone()).unwrap_or_default();
        Ok(Response::new(wire::ListTemplatesResponse { templates, next_page_token }))
    }

    async fn delete_template(
        &self,
        request: Request<wire::DeleteTemplateRequest>,
    ) -> Result<Response<wire::DeleteTemplateResponse>, Status> {
        let deadline = deadline::of(request.metadata());
        let request = request.into_inner();
        let request_id = request_id(&request.request_id).map_err(status::refuse)?;
        let name = named(request.name).map_err(status::refuse)?;
        let delete = async {
            let deleted = self.driver.delete_template(TenantId::default(), request_id, name).await;
            deleted.map_err(status::rejected)
        };
        let deleted = deadline::within(deadline, self.call_timeout, delete).await?;
        Ok(Response::new(wire::DeleteTemplateResponse { template: Some(template_to_wire(&deleted)) }))
    }
}

fn to_wire(status: &TemplateStatus) -> wire::Template {
    wire::Template {
        nodes_eligible: status.eligible,
        nodes_preparing: status.preparing,
        nodes_prepared: status.prepared,
        nodes_failed: status.failed,
        last_failure: status.last_failure.as_ref().map(cause_to_wire),
        ..template_to_wire(&status.template)
    }
}

fn named(name: String) -> Result<String, WireError> {
    check_name("name", &name)?;
    Ok(name)
}

/// The last name of the page before.
fn page_token(text: String) -> Result<Option<String>, WireError> {
    if text.is_empty() {
        return Ok(None);
    }
    check_name("page_token", &text).map_err(|_| pages::not_ours(&text))?;
    Ok(Some(text))
}
