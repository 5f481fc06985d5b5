"""The one reader of images, video folders, COCO annotations and ground truth; evaluation and training build on it."""
