"""Fill a Qdrant collection from the shards of an index, and search it.

    pip install qdrant-client
    python scripts/examples/index_to_qdrant.py holiday-index --database holiday-qdrant --query "a dog runs"
    python scripts/examples/index_to_qdrant.py holiday-index --database http://localhost:6333 --query "..."

The database is a folder, with Qdrant inside this process, or the address of a server or cluster. It stores the vectors
and searches them by cosine similarity. The tokens for re-ranking stay in the shards. You can fill a collection again:
each video keeps its id, so that no video appears twice.
"""

import argparse
import uuid
from pathlib import Path
from typing import Any

import torch
from qdrant_client import QdrantClient, models
from tqdm.auto import tqdm

from alpro_hf.inference.index_shards import Manifest
from alpro_hf.inference.video_index import VideoIndex
from alpro_hf.loading import load_model
from alpro_hf.trust import printable

BATCH = 256


def client_of(database: str) -> QdrantClient:
    """A client of the server at an address, or of a folder."""
    return QdrantClient(url=database) if "://" in database else QdrantClient(path=database)


def fill(client: QdrantClient, index: VideoIndex, collection: str) -> int:
    """Put an index into a collection, which is created if it is missing. Returns its number of points."""
    blocks = index.features()
    width = next(blocks).shape[1]
    if not client.collection_exists(collection):
        cosine = models.VectorParams(size=width, distance=models.Distance.COSINE)
        client.create_collection(collection, vectors_config=cosine)
    moments = iter(index.moments)  # of a long video, each window is a point
    with tqdm(total=len(index), unit="point") as bar:
        for block in index.features():
            for rows in block.float().split(BATCH):
                points = []
                for vector in rows:
                    path, start, end = next(moments)
                    # the id follows from path and time, so that a second run replaces the same points
                    point_id = str(uuid.uuid5(uuid.NAMESPACE_URL, f"{path}@{start}"))
                    payload = {"path": str(path), "start": start, "end": end}
                    points.append(models.PointStruct(id=point_id, vector=vector.tolist(), payload=payload))
                client.upsert(collection, points)
                bar.update(len(points))
    return client.count(collection).count


@torch.inference_mode()
def search(client: QdrantClient, index: VideoIndex, collection: str, query: str, top_k: int) -> list[Any]:
    """The best videos or moments as (path, start, end, cosine similarity), best first; a whole file has no times."""
    inputs = index.processor(text=[query], return_tensors="pt").to(index.model.device)
    embed = index.model.get_text_features(inputs["input_ids"]).pooler_output[0]
    found = client.query_points(collection, query=embed.float().cpu().tolist(), limit=top_k).points
    payloads = [(point.payload, point.score) for point in found if point.payload]
    return [(payload["path"], payload["start"], payload["end"], score) for payload, score in payloads]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("index", type=Path, help="folder of an index, made by `alpro index`")
    parser.add_argument("--database", required=True, help="folder of a database, or address of a server")
    parser.add_argument("--collection", default="videos", help="name of the collection (default: %(default)s)")
    parser.add_argument("--query", help="text to search for after filling")
    parser.add_argument("--top-k", type=int, default=10, help="results to print (default: %(default)s)")
    arguments = parser.parse_args()
    # queries need the model that encoded the videos; the index knows its name
    made = Manifest.read(arguments.index).model
    index = VideoIndex.load(arguments.index, *load_model("retrieval", made["name"], made["dtype"]))
    client = client_of(arguments.database)
    print(f"{fill(client, index, arguments.collection)} points in {arguments.collection} of {arguments.database}")
    if arguments.query:
        for path, start, end, score in search(client, index, arguments.collection, arguments.query, arguments.top_k):
            print(f"{score:.3f}  {printable(path)}{'' if start is None else f'  {start:.1f} to {end:.1f} s'}")
    client.close()


if __name__ == "__main__":
    main()
