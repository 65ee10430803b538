//! Removing claims that nobody will look at again.

use model::Generation;

use super::{Claim, ValidateError, list_claims};
use crate::object_path::ObjectPath;

impl Claim {
    /// Deletes the claims below this one but for the newest of them. Only for an owner of a day or more that has its own indexes in the bucket: until
    /// then somebody may still be about to learn from one of them that it is late. Answers how many went.
    pub async fn clean_older(&self) -> Result<usize, ValidateError> {
        let (bucket, tenant) = (self.bucket(), self.tenant());
        let mut older: Vec<Generation> = list_claims(&**bucket, tenant, None).await?;
        older.retain(|claim| *claim < self.generation());
        older.pop();
        if older.is_empty() {
            return Ok(0);
        }
        self.validate().await?;
        let path =
            |generation: &Generation| ObjectPath::Claim { tenant, generation: *generation }.to_string();
        let paths: Vec<String> = older.iter().map(path).collect();
        bucket.delete(&paths).await?;
        Ok(paths.len())
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;
    use crate::bucket::MemoryBucket;
    use crate::ports::Bucket;

    #[tokio::test]
    async fn the_newest_two_claims_stay_and_a_superseded_owner_cleans_nothing() {
        let bucket: Arc<dyn Bucket> = Arc::new(MemoryBucket::default());
        let tenant = "00112233445566778899aabbccddeeff".parse().unwrap();
        let mut owners = Vec::new();
        for _ in 0..5 {
            owners.push(Claim::take(Arc::clone(&bucket), tenant).await.unwrap());
        }
        assert!(matches!(owners[3].clean_older().await, Err(ValidateError::Superseded { .. })));
        assert_eq!(owners[4].clean_older().await.unwrap(), 3);
        assert_eq!(list_claims(&*bucket, tenant, None).await.unwrap(), [Generation(4), Generation(5)]);
        assert_eq!(owners[4].clean_older().await.unwrap(), 0);
        owners[4].validate().await.unwrap();
        assert_eq!(Claim::take(bucket, tenant).await.unwrap().generation(), Generation(6));
    }
}
