"""OSTrack in the interfaces of other tools, one module each, which needs that tool installed.

| module | tool |
|---|---|
| `got10k` | the GOT-10k toolkit's experiments (GOT-10k, OTB, LaSOT, TrackingNet, ...) |
| `pytracking` | the tracker interface of pytracking and of the published code |
| `vot` | the VOT toolkit, through the TraX protocol: `python -m ostrack_fast.adapters.vot` |
| `supervision` | Roboflow's `supervision.Detections` |
| `cvat` | a tracking function for CVAT's automatic annotation |
| `tables` | results as a pandas DataFrame, MOTChallenge text or COCO-VID json |
"""
