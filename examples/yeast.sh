#!/usr/bin/env bash
# The whole pipeline on a real genome: yeast, 350 factors, ChIP-exo peaks.  2 cores, under 3 GiB; docs/benchmarks.md has the times.
#
#     examples/yeast.sh DATA_DIR OUT_DIR
#
# DATA_DIR holds the genome, the peaks, the proteins, the gene names, the blacklist and the motif matrices named below.
# Twenty factors, drawn by seed among those with 100 peaks or more, are in no training: neither the trunk's nor the
# head's. Chromosomes IV and XVI are for the final scores, XIII chooses when to stop. VII and XV have no peaks in these
# files and are unlabelled. A second trunk and head, trained on peaks moved to random places, are the control.
# Every step can be stopped and the script started again: what is done is not done twice.
set -euo pipefail
[ $# = 2 ] || { sed -n '2,5p' "$0"; exit 1; }
data=$1 out=$2 store=$2/yeast.store
passes=${PASSES:-45} control_passes=${CONTROL_PASSES:-8} steps=${STEPS:-1500}
mkdir -p "$out"
begun() { printf '\n== %s (%d min)\n' "$1" $((SECONDS / 60)); }

begun "import"
[ -e "$store/store.json" ] || tfbind init "$store" "$data/sacCer3.nuclear.fa.gz" --window-bp 16384 --bins 96
tfbind import factors   "$store" "$data/sacCer3.proteins.fa.gz" --synonyms "$data/SGD_features_170331.tab.gz"
tfbind import peaks     "$store" "$data/peaks.remap.bed.gz"
tfbind import experiments "$store" "$data/sample-key.tab" --column 'factor=Yeast Target Common Name' --column accession=
# the filter list also names chrM and the 2-micron plasmid, which this FASTA leaves out
tfbind import blacklist "$store" "$data/ChExMix_Peak_Filter_List_190612.bed" --drop unknown_chromosome
[ -e "$store/selections/held_out" ] || tfbind select "$store" held_out \
  --test-chroms chrIV,chrXVI --valid-chroms chrXIII --hold-out-random factor:20:min_peaks=100 --allow-leak paralog

begun "a small trunk on the training rows, then its embeddings of the genome"
[ -e "$out/trunk/model.safetensors" ] || tfbind pretrain "$store" held_out "$out/trunk" --passes "$passes"
tfbind embed "$store" windows --checkpoint "$out/trunk" --set strand=mean
tfbind embed "$store" factors
tfbind embed "$store" contexts

begun "the head"
finished() { [ -e "$1/head.safetensors" ] && [ ! -e "$1/state.safetensors" ]; }
finished "$store/runs/adapter" || tfbind train "$store" held_out --run adapter --steps "$steps"
tfbind evaluate "$store/runs/adapter" --motifs "$data/JASPAR2024_yeast.jaspar"

begun "the control: labels moved before the trunk is trained"
[ -e "$out/control/model.safetensors" ] \
  || tfbind pretrain "$store" held_out "$out/control" --passes "$control_passes" --permute-labels
tfbind embed "$store" windows --checkpoint "$out/control" --set strand=mean --name control
finished "$store/runs/control" || tfbind train "$store" held_out \
  --run control --windows embeddings/control --permute-labels --steps $((steps / 3))
tfbind evaluate "$store/runs/control"

begun "report"
tfbind report "$store/runs/adapter"
begun "done: $store/runs/adapter/report.html"
