use proptest::collection::vec;
use proptest::prelude::*;

use super::*;
use crate::image::contents::outside;

fn loaded(json: &str) -> Result<Contents, String> {
    serde_json::from_str(json).map_err(|error| error.to_string())
}

#[test]
fn what_was_saved_is_loaded() {
    let dir = tempfile::tempdir().unwrap();
    let (_, layers) = chain(dir.path());
    for (_, contents) in layers {
        let saved = serde_json::to_string(&contents).unwrap();
        assert_eq!(loaded(&saved).unwrap(), contents);
    }
    let contents = loaded(r#"{"pages":9,"data":[[0,2],[3,1]],"sums":[7,8,9]}"#).unwrap();
    let summed: Vec<_> = contents.summed().collect();
    assert_eq!(summed, [(pages(0, 2), &[7, 8][..]), (pages(5, 1), &[9][..])]);
    assert_eq!((contents.pages(), contents.data_pages()), (pages(0, 9), 3));
}

#[test]
fn contents_that_lie_are_refused() {
    let end = u64::MAX;
    for (json, why) in [
        (r#"{"pages":0,"data":[],"sums":[]}"#.to_owned(), "a memory of 0 pages"),
        (format!(r#"{{"pages":{end},"data":[],"sums":[]}}"#), "cannot be"),
        (r#"{"pages":9,"data":[[1,0]],"sums":[]}"#.to_owned(), "run 0"),
        (r#"{"pages":9,"data":[[1,1],[0,1]],"sums":[1,2]}"#.to_owned(), "run 1"),
        (r#"{"pages":9,"data":[[8,2]],"sums":[1,2]}"#.to_owned(), "not in its 9 pages"),
        (r#"{"pages":9,"data":[[1,2],[9,1]],"sums":[1,2,3]}"#.to_owned(), "run 1"),
        (format!(r#"{{"pages":9,"data":[[1,{end}]],"sums":[]}}"#), "not in its 9 pages"),
        (format!(r#"{{"pages":9,"data":[[{end},1]],"sums":[1]}}"#), "not in its 9 pages"),
        (format!(r#"{{"pages":9,"data":[[1,1],[{end},{end}]],"sums":[1]}}"#), "run 1"),
        (r#"{"pages":9,"data":[[1,2]],"sums":[1]}"#.to_owned(), "1 checksums"),
        (r#"{"pages":9,"data":[[1,2]],"sums":[1,2,3]}"#.to_owned(), "3 checksums"),
        (r#"{"pages":2251799813685247,"data":[[0,2251799813685247]],"sums":[]}"#.to_owned(), "0 checksums"),
    ] {
        let error = loaded(&json).unwrap_err();
        assert!(error.contains(why), "{json}: {error}");
        assert!(error.contains("take another copy"), "{error}");
    }
}

/// Contents by what each page has: nothing, or a checksum.
fn contents_of(sums: &[Option<u32>]) -> Contents {
    let all = pages(0, sums.len() as u64);
    let (mut contents, mut end) = (Contents::empty(all), PageIndex(0));
    for (page, sum) in all.pages().zip(sums) {
        if let Some(sum) = sum {
            contents.push(&mut end, page.alone(), &[*sum]);
        }
    }
    contents
}

fn sums() -> impl Strategy<Value = Vec<Option<u32>>> {
    vec(prop_oneof![Just(None), any::<u32>().prop_map(Some)], 24)
}

proptest! {
    #[test]
    fn one_over_another_is_what_each_page_by_itself_says(base in sums(), diff in sums()) {
        let model: Vec<_> = base.iter().zip(&diff).map(|(base, diff)| diff.or(*base)).collect();
        let merged = contents_of(&base).under(&contents_of(&diff)).unwrap();
        prop_assert_eq!(&merged, &contents_of(&model));
        prop_assert_eq!(loaded(&serde_json::to_string(&merged).unwrap()), Ok(merged));
    }

    #[test]
    fn outside_is_the_rest_of_a_range(sums in sums(), start in 0_u64..24, count in 0_u64..24) {
        let range = pages(start, count.min(24 - start));
        let contents = contents_of(&sums);
        let except: Vec<_> = contents.data().collect();
        let rest: Vec<_> = outside(range, &except).into_iter().flat_map(PageRange::pages).collect();
        let model: Vec<_> =
            range.pages().filter(|page| sums[usize::try_from(page.0).unwrap()].is_none()).collect();
        prop_assert_eq!(rest, model);
    }
}

#[test]
fn contents_of_another_memory_do_not_fit() {
    let error = contents_of(&[None; 4]).under(&contents_of(&[None; 5])).unwrap_err();
    assert_eq!(error, ContentsError::Other { base: 4, other: 5 });
}
