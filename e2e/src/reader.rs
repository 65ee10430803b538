//! A client in a pod: it finds a tenant's pageserver by the name of the tenant's Service and reads pages as of an LSN.

use std::time::Duration;

use anyhow::{Context, Result, ensure};
use codec::page::Page;
use model::Lsn;
use testkit::cluster_files::PageKind;
use testkit::page_compare::{Verdict, compare};

use crate::cluster::Cluster;
use crate::platform::Images;
use crate::source::Source;
use crate::token;

/// Whose pages, and in which pod the client is.
#[derive(Clone, Debug)]
pub struct Reader {
    cluster: Cluster,
    namespace: String,
    address: String,
    token: Option<String>,
    tenant: String,
    timeline: String,
}

impl Reader {
    /// Starts the client pod in the tenant's namespace. The ids come from the resources' status.
    pub fn start(
        cluster: &Cluster,
        images: &Images,
        namespace: &str,
        tenant: &str,
        timeline: &str,
    ) -> Result<Reader> {
        Reader::start_on(cluster, images, (namespace, None), tenant, timeline)
    }

    /// The same in a namespace, on a node or on any.
    pub fn start_on(
        cluster: &Cluster,
        images: &Images,
        (namespace, node): (&str, Option<&str>),
        tenant: &str,
        timeline: &str,
    ) -> Result<Reader> {
        let image = images.name("pageserver");
        let on = node.map(|node| format!("kubernetes.io/hostname: {node}")).unwrap_or_default();
        // Our image has no shell to sleep in: waiting for what never answers keeps the pod.
        cluster.apply(&format!(
            r"
apiVersion: v1
kind: Pod
metadata: {{name: reader, namespace: {namespace}}}
spec:
  nodeSelector: {{{on}}}
  terminationGracePeriodSeconds: 1
  automountServiceAccountToken: false
  enableServiceLinks: false
  securityContext: {{runAsNonRoot: true, runAsUser: 65532, seccompProfile: {{type: RuntimeDefault}}}}
  containers:
    - name: reader
      image: {image}
      command: [pagectl, ready, --within, 600m, '127.0.0.1:1']
      securityContext: {{allowPrivilegeEscalation: false, readOnlyRootFilesystem: true, capabilities: {{drop: [ALL]}}}}
"
        ))?;
        cluster.wait(namespace, "pod/reader", "Ready", Duration::from_mins(1))?;
        let id = |resource: String, path| -> Result<String> {
            let id = cluster.field(namespace, &resource, path)?;
            ensure!(id.len() == 32, "{resource} has no {path} but {id:?}");
            Ok(id)
        };
        let tenant_id = id(format!("tenant/{tenant}"), ".status.tenantID")?;
        Ok(Reader {
            cluster: cluster.clone(),
            namespace: namespace.into(),
            address: format!("{tenant}.{namespace}.svc.cluster.local:6400"),
            token: Some(token::of_tenant(&tenant_id)),
            tenant: tenant_id,
            timeline: id(format!("timeline/{timeline}"), ".status.timelineID")?,
        })
    }

    /// The same with another token, or with none.
    #[must_use]
    pub fn with_token(&self, token: Option<String>) -> Reader {
        Reader { token, ..self.clone() }
    }

    /// A page of the relation with these oids.
    pub fn page(&self, oids: &str, block: u32, lsn: Lsn) -> Result<Vec<u8>> {
        self.page_by(oids, block, lsn, |words| self.cluster.exec(&self.namespace, "reader", words))
    }

    /// The same by another way to run a program in the client's container.
    pub fn page_by(
        &self,
        oids: &str,
        block: u32,
        lsn: Lsn,
        run: impl Fn(&[&str]) -> Result<String>,
    ) -> Result<Vec<u8>> {
        let (block, lsn) = (block.to_string(), lsn.to_string());
        let server = match &self.token {
            Some(token) => format!("postgres://reader:{token}@{}", self.address),
            None => self.address.clone(),
        };
        let words = [
            "pagectl",
            "page",
            "get",
            "--server",
            &server,
            "--tenant",
            &self.tenant,
            "--timeline",
            &self.timeline,
            "--rel",
            oids,
            "--block",
            &block,
            "--lsn",
            &lsn,
        ];
        let dump = run(&words)?;
        undump(&dump).with_context(|| format!("page {block} of {oids} at {lsn} was printed as {dump}"))
    }

    /// Reads at most `most` blocks of a relation, spread over it, and compares each with the source's file. Gives how many.
    pub fn compare(
        &self,
        source: &Source,
        relation: &str,
        kind: PageKind,
        most: u32,
        lsn: Lsn,
    ) -> Result<u32> {
        let (path, oids, blocks) = source.relation(relation)?;
        ensure!(blocks > 0, "{relation} is empty");
        let step = blocks.div_ceil(most).max(1);
        let wanted: Vec<u32> = (0..blocks).step_by(step as usize).collect();
        let mut compared = 0;
        for (block, theirs) in wanted.iter().copied().zip(source.blocks(&path, &wanted)?) {
            let theirs: Box<Page> = page(theirs)?;
            let ours: Box<Page> = page(self.page(&oids, block, lsn)?)?;
            let verdict = compare(kind, block, &theirs, &ours)?;
            ensure!(
                verdict != Verdict::Different,
                "block {block} of {relation} at {lsn} differs from the source's"
            );
            compared += 1;
        }
        ensure!(compared == wanted.len() as u32, "{compared} of {} blocks were read", wanted.len());
        Ok(compared)
    }
}

fn page(bytes: Vec<u8>) -> Result<Box<Page>> {
    let length = bytes.len();
    bytes.into_boxed_slice().try_into().ok().with_context(|| format!("a page of {length} bytes"))
}

/// The bytes of a page that `pagectl page get` printed: sixteen a line after their offset; lines of zeros are left out.
fn undump(text: &str) -> Option<Vec<u8>> {
    let mut page = vec![0; 8192];
    for line in text.lines().filter(|line| !line.starts_with(['#', '*'])) {
        let offset = usize::from_str_radix(line.get(..4)?, 16).ok()?;
        let digits: String = line.get(6..53)?.split(' ').collect();
        page.get_mut(offset..offset + 16)?.copy_from_slice(&hex::decode(digits).ok()?);
    }
    Some(page)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_printed_page_is_read_back() {
        let text = "# 1663/5/16384 block 0: LSN 0/1, checksum 0000\n\
                    0000  01 02 03 04 05 06 07 08 09 0a 0b 0c 0d 0e 0f 10  ................\n\
                    *\n\
                    1ff0  41 42 43 44 45 46 47 48 49 4a 4b 4c 4d 4e 4f 50  ABCDEFGHIJKLMNOP\n";
        let page = undump(text).unwrap();
        assert_eq!(page[..16], *(1..=16).collect::<Vec<u8>>());
        assert!(page[16..8176].iter().all(|byte| *byte == 0));
        assert_eq!(page[8176..], *b"ABCDEFGHIJKLMNOP");
        assert_eq!(undump("1ff1  41 42 43 44 45 46 47 48 49 4a 4b 4c 4d 4e 4f 50  ABCDEFGHIJKLMNOP"), None);
        assert_eq!(undump("error: no"), None);
    }
}
