#!/usr/bin/env bash
# The same pipeline for the human genome, with the published models. Needs a GPU and 400 GB of disk. Not run by us as a
# whole: this project's machines hold neither the files nor the weights; every command is tested on small data.
#
#     examples/hg38.sh DATA_DIR OUT_DIR
#
# DATA_DIR is yours to fill:
#   hg38.fa.gz  hg38.chrom.sizes            UCSC; only the chromosomes named below are taken
#   remap2022_nr_macs2_hg38.bed.gz          ReMap, or any BED whose column 4 is ACCESSION.FACTOR.BIOTYPE
#   human_proteins.fa.gz                    UniProt FASTA with GN= headers
#   biotypes.tsv                            one row per biotype; all columns become the text of the context
#   hg38-blacklist.v2.bed.gz                ENCODE
#   enformer-official-rough/                config.json + weights of EleutherAI/enformer-official-rough
#   esm2_t33_650M_UR50D.pt                  fair-esm
#   BiomedBERT/                             config, vocabulary and weights of any BERT
set -euo pipefail
[ $# = 2 ] || { sed -n '2,5p' "$0"; exit 1; }
data=$1 out=$2 store=$2/hg38.store
mkdir -p "$out"
only=(); for chrom in chr{1..22} chrX; do only+=(--only "$chrom"); done

[ -e "$store/store.json" ] || tfbind init "$store" "$data/hg38.fa.gz" "${only[@]}"
tfbind import factors   "$store" "$data/human_proteins.fa.gz" --species 'Homo sapiens'
# peaks on chrY, chrM and the scaffolds are left out and counted, as is what ReMap's names do not say
tfbind import peaks     "$store" "$data/remap2022_nr_macs2_hg38.bed.gz" --drop unknown_chromosome --drop bad_name
tfbind import biotypes  "$store" "$data/biotypes.tsv"
tfbind import blacklist "$store" "$data/hg38-blacklist.v2.bed.gz" --drop unknown_chromosome

# Enformer was itself trained on most of the genome and on many ChIP tracks: a held-out factor is new to the head and
# to the protein side, not always to the trunk. The report names what the trunk is known to have seen, if its card says.
[ -e "$store/selections/held_out" ] || tfbind select "$store" held_out --bins 4 \
  --valid-chroms chr9 --test-chroms chr8,chr21 --hold-out-random family:50:min_peaks=1000

tfbind plan  "$store" windows --checkpoint "$data/enformer-official-rough" --set use_tf_gamma=true
tfbind embed "$store" windows --checkpoint "$data/enformer-official-rough" --set use_tf_gamma=true
tfbind embed "$store" factors  --embedder esm  --checkpoint "$data/esm2_t33_650M_UR50D.pt"
tfbind embed "$store" contexts --embedder bert --checkpoint "$data/BiomedBERT"

# 149 GB of windows in 12 GB, which lie in memory or on the GPU: train on them with --windows windows-pca256
tfbind project "$store" --from windows --dim 256

[ -e "$store/runs/adapter/head.safetensors" ] || tfbind train "$store" held_out --run adapter
tfbind evaluate "$store/runs/adapter"
tfbind report   "$store/runs/adapter"
