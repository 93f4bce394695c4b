"""VideoLLaMA2 and 2.1 (arXiv 2406.07476): our own port on transformers' Mistral, Qwen2, CLIP and SigLIP.

Official checkpoints load and save under their own key names. The models are the official
`DAMO-NLP-SG/VideoLLaMA2*` repositories; everything here is written anew from their published behaviour.
"""
