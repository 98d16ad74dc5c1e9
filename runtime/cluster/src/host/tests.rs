//! Tests of `host`.

use sixfold_wire::id::JobId;

use super::*;

/// A coordinator that knows one node, which has everything.
struct OneNode(watch::Sender<ClusterView>);

#[async_trait]
impl Reports for OneNode {
    async fn report(&self, report: NodeReport) -> Result<NodeReply, HostError> {
        let there = NodeAddress { node: "there".into(), address: SocketAddr::from(([127, 0, 0, 1], 7)) };
        Ok(match report {
            NodeReport::Locate { .. } => NodeReply::Locations(vec![there]),
            _ => NodeReply::Accepted,
        })
    }

    fn view(&self) -> watch::Receiver<ClusterView> {
        self.0.subscribe()
    }
}

/// That node's store, from which artefacts are copied into this one's.
struct There {
    there: Store,
    here: Store,
}

#[async_trait]
impl Neighbours for There {
    async fn fetch(&self, _from: &NodeAddress, id: ArtifactId) -> Result<Manifest, TransferError> {
        let manifest = self.there.manifest(id)?;
        for file in &manifest.files {
            self.here.put(&file.name, &self.there.read_entry(file)?)?;
        }
        self.here.publish(&manifest)?;
        Ok(manifest)
    }

    async fn push(&self, _to: &NodeAddress, _id: ArtifactId) -> Result<(), TransferError> {
        Err(TransferError::Protocol("nothing is pushed"))
    }

    async fn hold(
        &self,
        _to: &NodeAddress,
        _tag: &HoldTag,
        _manifest: &Manifest,
        _files: &[Bytes],
    ) -> Result<(), TransferError> {
        Err(TransferError::Protocol("nothing is held"))
    }

    async fn list_held(
        &self,
        _from: &NodeAddress,
        _gang: GangId,
        _epoch: Epoch,
    ) -> Result<Listing, TransferError> {
        Err(TransferError::Protocol("nothing is held"))
    }

    async fn read_held(
        &self,
        _from: &NodeAddress,
        _attempt: (GangId, Epoch),
        _state: ArtifactId,
        _file: &FileEntry,
    ) -> Result<Bytes, TransferError> {
        Err(TransferError::Protocol("nothing is held"))
    }
}

fn publish(store: &Store, content: &str, needs: &[ArtifactId]) -> ArtifactId {
    let mut manifest = Manifest { needs: needs.to_vec(), ..Manifest::new("model", "train") };
    manifest.files.push(store.put("content", content.as_bytes()).unwrap());
    store.publish(&manifest).unwrap()
}

#[tokio::test]
async fn an_artefact_is_fetched_with_all_that_it_needs() {
    let folders = [tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap()];
    let [here, there] = folders.each_ref().map(|folder| Store::open(folder.path()).unwrap());
    let shared = Arc::new(Shared {
        node: "here".into(),
        store: here.clone(),
        reports: Arc::new(OneNode(watch::Sender::new(ClusterView::default()))),
        neighbours: Arc::new(There { there: there.clone(), here: here.clone() }),
        holder: SharedHolder::new(1 << 20),
    });
    let task = TaskId { job: JobId(1), phase: 0, index: 0 };
    let host = DaemonHost::new(shared, task, Epoch(1), watch::Sender::new(None).subscribe(), |_| ());

    let base = publish(&there, "base", &[]);
    let other = publish(&there, "other", &[]);
    let first = publish(&there, "first", &[base]);
    let second = publish(&there, "second", &[first, base]);
    assert_eq!(host.fetch(second).await.unwrap(), there.manifest(second).unwrap());
    assert_eq!([base, first, second, other].map(|id| here.verify(id).is_ok()), [true, true, true, false]);

    // What is here already may lack what it needs.
    here.remove(base).unwrap();
    host.fetch(first).await.unwrap();
    here.verify(base).unwrap();

    there.remove(base).unwrap();
    here.remove(base).unwrap();
    let lost = host.fetch(first).await.unwrap_err();
    assert!(matches!(lost, HostError::Unavailable(id) if id == base), "{lost}");
}
